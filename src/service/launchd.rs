//! The property list of launchd.

use super::Plan;

/// Open files: connections, and those of the bank.
const FILES_MAX: u32 = 4096;
/// Seconds before it is started anew.
const THROTTLE_S: u32 = 10;
/// Only the owner reads what it writes: 0077.
const UMASK: u32 = 63;

const HEAD: &str = concat!(
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
    "<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" ",
    "\"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n",
    "<plist version=\"1.0\">\n<dict>\n",
);

/// The whole list.
pub(super) fn list(plan: &Plan) -> String {
    let mut list = HEAD.to_owned();
    let mut entry = |key: &str, value: &str| {
        list.push_str(&format!("  <key>{key}</key>\n  {value}\n"));
    };
    let words: String = plan.command.iter().map(|w| format!("    {}\n", text(w))).collect();
    entry("Label", &text(&plan.label()));
    entry("ProgramArguments", &format!("<array>\n{words}  </array>"));
    // Relative paths of its settings begin here.
    entry("WorkingDirectory", &text(&plan.folder));
    entry("RunAtLoad", "<true/>");
    // An end in order is one.
    entry("KeepAlive", "<dict>\n    <key>SuccessfulExit</key>\n    <false/>\n  </dict>");
    entry("ThrottleInterval", &number(THROTTLE_S));
    entry("ExitTimeOut", &number(plan.stop_s));
    // Others slow down what nobody looks at.
    entry("ProcessType", &text("Interactive"));
    entry("Umask", &number(UMASK));
    let files = number(FILES_MAX);
    let files = format!("<dict>\n    <key>NumberOfFiles</key>\n    {files}\n  </dict>");
    entry("SoftResourceLimits", &files);
    entry("HardResourceLimits", &files);
    entry("StandardErrorPath", &text(&plan.log));
    if let Some(user) = plan.user.as_ref().filter(|_| plan.system) {
        entry("UserName", &text(user));
    }
    list.push_str("</dict>\n</plist>\n");
    list
}

fn number(value: u32) -> String {
    format!("<integer>{value}</integer>")
}

fn text(value: &str) -> String {
    let value = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<string>{value}</string>")
}
