//! The unit of systemd: what the server may do, and nothing else.

use std::fmt::Write;

use super::Plan;

/// Open files: connections, and those of the bank.
const FILES_MAX: u32 = 4096;

/// The whole unit.
pub(super) fn unit(plan: &Plan) -> String {
    let mut unit = String::new();
    let mut line = |text: &str| {
        unit.push_str(text);
        unit.push('\n');
    };
    line("[Unit]");
    line("Description=mtplx, one large language model for a whole team");
    line("After=network.target");
    line("# What cannot start is not tried for ever.");
    line("StartLimitIntervalSec=300");
    line("StartLimitBurst=5");
    line("\n[Service]");
    line("Type=exec");
    line(&format!("ExecStart={}", command(plan)));
    line("# Relative paths of its settings begin here.");
    line(&format!("WorkingDirectory={}", plan.folder.replace('%', "%%")));
    line("# Reads all settings anew, all of them or none.");
    line("ExecReload=/bin/kill -HUP $MAINPID");
    if let Some(file) = &plan.environment {
        line("# MTPLX_ADMIN_TOKEN=... stands there, for its owner's eyes; it may be missing.");
        line(&format!("EnvironmentFile=-{}", file.replace('%', "%%")));
    }
    if let Some(user) = plan.user.as_ref().filter(|_| plan.system) {
        line(&format!("User={user}"));
    }
    line("Restart=on-failure");
    line("RestartSec=2");
    line("# Asked twice it leaves at once, with 128 and the number of the signal.");
    line("SuccessExitStatus=130 143");
    line("# Running requests may finish (root.drain_s), then warm prefixes are written.");
    line(&format!("TimeoutStopSec={}", plan.stop_s));
    line("KillMode=mixed");
    line(&format!("LimitNOFILE={FILES_MAX}"));
    line("UMask=0077");
    line("\n# It reads its model and settings, writes what is named here, and listens.");
    for path in &plan.writes {
        line(&format!("ReadWritePaths={}", quoted(path)));
    }
    confined(plan, &mut line);
    line("\n[Install]");
    line(if plan.system { "WantedBy=multi-user.target" } else { "WantedBy=default.target" });
    unit
}

fn confined(plan: &Plan, line: &mut impl FnMut(&str)) {
    for text in [
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "ProtectControlGroups=yes",
        "ProtectKernelTunables=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
    ] {
        line(text);
    }
    if plan.system {
        // A user's own systemd has no right to take these away.
        for text in [
            "ProtectKernelModules=yes",
            "ProtectKernelLogs=yes",
            "ProtectClock=yes",
            "ProtectHostname=yes",
            "ProtectProc=invisible",
            "CapabilityBoundingSet=",
            "SystemCallFilter=@system-service",
        ] {
            line(text);
        }
    }
    if plan.gpu {
        line("# A GPU is a device, and its driver makes code as it goes.");
    } else {
        line("MemoryDenyWriteExecute=yes");
        if plan.system {
            line("PrivateDevices=yes");
        }
    }
}

/// The command as `ExecStart` takes it. The program itself is not searched for variables.
fn command(plan: &Plan) -> String {
    let mut words = plan.command.iter();
    let mut line = words.next().map_or_else(String::new, |program| quoted(program));
    for word in words {
        let _ = write!(line, " {}", quoted(&word.replace('$', "$$")));
    }
    line
}

/// A word of a line that holds several.
fn quoted(word: &str) -> String {
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
