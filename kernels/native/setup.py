#!/usr/bin/env python3
"""Makes a checkout ready for plain `cargo build`, `test`, `clippy` and `run`.

On Linux mlx-sys has no build of its own. This takes MLX itself from its wheel, builds mlx-c (whose
source lies inside the mlx-sys crate) and a small shim against it, writes the Rust bindings, and
tells Cargo about the four in `.cargo/config.toml`, by a build-script override. On macOS mlx-sys
builds everything; there this only checks the tools and names cmake and a place for the metallib.

Writes below the checkout only: `.native/` and `.cargo/config.toml`. A second run finds nothing to
do, or, after the checkout was moved, rewrites the paths.
"""

import contextlib
import fcntl
import glob
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NATIVE = ROOT / ".native"
VENV = NATIVE / "venv"
SHIM = HERE / "shim"
REQUIREMENTS = HERE / "requirements.txt"
CONFIG = ROOT / ".cargo" / "config.toml"
CONFIG_MARK = "# Written by `make setup`; what is edited here is lost.\n"


class SetupError(Exception):
    """Something that the person at the keyboard has to put right; the text says how."""


def main():
    NATIVE.mkdir(exist_ok=True)
    try:
        with lock():
            if platform.system() == "Darwin":
                setup_macos()
            else:
                setup_linux()
    except SetupError as problem:
        sys.exit(f"setup: {problem}")


def setup_linux():
    """Every step in order; each is skipped when its inputs are those of its last run."""
    target = linux_target()
    refuse_rustflags(target)
    check_tools_linux()
    keys = [
        step("venv", install_packages, [REQUIREMENTS], also=venv_python()),
        step("mlxc", build_mlx_c, [REQUIREMENTS, SHIM / "format.h"], also=locked_mlx_sys()),
        step("shim", build_shim, [SHIM, REQUIREMENTS], also=locked_mlx_sys()),
    ]
    # Before the bindings: the helper is then compiled once, with the flags it keeps.
    keys.append(digest([SHIM, HERE / "bindings"], locked_mlx_sys()))
    write_config(linux_config(target, revision=digest([], "".join(keys))))
    step("bindings", write_bindings, [SHIM, HERE / "bindings"], also=locked_mlx_sys())
    if os.environ.get("CUDA") == "1":
        step("cuda", install_cuda, [REQUIREMENTS], also=venv_python())


def setup_macos():
    """mlx-sys's own build needs cmake and Apple's Metal compiler; nothing is built here."""
    check_tools_macos()
    step("venv", install_packages, [REQUIREMENTS], also=venv_python())
    write_config(macos_config())


# What a machine must have.


def linux_target():
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ("x86_64", "aarch64"):
        raise SetupError(
            "MLX runs on Linux (x86-64, arm64) and macOS (arm64), "
            f"not on {platform.system()} {machine}"
        )
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        libc = ""
    version = re.match(r"glibc (\d+)\.(\d+)", libc)
    if not version or tuple(map(int, version.groups())) < (2, 35):
        raise SetupError(
            "MLX's wheel needs glibc 2.35 or later (Debian 12, Ubuntu 22.04); "
            f"this system has {libc or 'another C library'}"
        )
    return f"{machine}-unknown-linux-gnu"


def check_tools_linux():
    apt = []
    if not (compiler("CC", "cc") and compiler("CXX", "c++") and shutil.which("ar")):
        apt.append("build-essential")
    if not has_venv():
        apt.append("python3-venv")
    missing = []
    if apt:
        missing.append(f"Debian or Ubuntu: sudo apt-get install {' '.join(apt)}")
    missing += lack_of_cargo()
    complain(missing)


def check_tools_macos():
    if platform.machine() != "arm64":
        raise SetupError("MLX needs Apple silicon; this Mac has an Intel processor")
    missing = []
    if not succeeds("xcode-select", "-p"):
        missing.append("compiler: xcode-select --install")
    elif not succeeds("xcrun", "-sdk", "macosx", "metal", "--version"):
        missing.append(
            "Metal compiler: install Xcode itself from the App Store, open it once, then "
            "xcodebuild -downloadComponent MetalToolchain"
        )
    missing += lack_of_cargo()
    if not has_venv():
        missing.append("python3 with venv: xcode-select --install")
    complain(missing)


def refuse_rustflags(target):
    """These win over .cargo/config.toml, even empty: programs would not find libmlx.so."""
    for name in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"):
        if name in os.environ:
            raise SetupError(
                f"{name} is set, so Cargo would ignore where libmlx.so is: unset {name}. "
                f"Flags of your own go into ~/.cargo/config.toml as target.{target}.rustflags"
            )


def lack_of_cargo():
    if not shutil.which("cargo"):
        return ["cargo: install Rust with rustup (https://rustup.rs)"]
    wanted = re.search(r'^rust-version = "([0-9.]+)"', (ROOT / "Cargo.toml").read_text(), re.M)
    said = subprocess.run(["cargo", "--version"], cwd=ROOT, capture_output=True, text=True)
    found = re.match(r"cargo ([0-9.]+)", said.stdout)
    if not found:
        return [f"cargo that works; `cargo --version` says: {(said.stdout + said.stderr).strip()}"]
    if numbers(found.group(1)) < numbers(wanted.group(1)):
        return [
            f"cargo {wanted.group(1)} or later, this is {found.group(1)}: "
            "rustup update stable (without rustup: https://rustup.rs)"
        ]
    return []


def numbers(version):
    return tuple(map(int, version.split(".")))


def complain(missing):
    if missing:
        raise SetupError("this machine lacks what the build needs\n  " + "\n  ".join(missing))


def has_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def compiler(variable, default):
    """The compiler that the environment names, as cmake and the cc crate read it."""
    command = os.environ.get(variable) or default
    return command if shutil.which(command.split()[0]) else None


# The steps.


def install_packages():
    """install the pinned packages into .native/venv"""
    run("venv", [sys.executable, "-m", "venv", "--clear", VENV])
    pip = [VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run("venv", pip + ["install", "--quiet", "--no-deps", "-r", REQUIREMENTS])


def install_cuda():
    """install MLX for CUDA 13 with NVIDIA's libraries into .native/cuda, about 2 GB"""
    version = re.search(r"^mlx-cpu==([0-9.]+);", REQUIREMENTS.read_text(), re.M).group(1)
    pip = [VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    target = ["--target", fresh(NATIVE / "cuda")]
    run("cuda", pip + ["install", "--quiet", *target, f"mlx-cuda-13=={version}"])


def build_mlx_c():
    """compile mlx-c, from the mlx-sys crate's source and against the wheel's MLX"""
    source = mlx_c_source()
    build = NATIVE / "build"
    shutil.rmtree(build, ignore_errors=True)
    configure = [
        cmake(),
        "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={VENV / 'bin' / 'ninja'}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_FLAGS=-include {SHIM / 'format.h'}",
        "-DMLX_C_USE_SYSTEM_MLX=ON",
        "-DMLX_C_BUILD_EXAMPLES=OFF",
        f"-DMLX_DIR={wheel() / 'share' / 'cmake' / 'MLX'}",
        "-S", source,
        "-B", build,
    ]  # fmt: skip
    run("mlxc", configure)
    run("mlxc", [cmake(), "--build", build])
    (NATIVE / "lib").mkdir(exist_ok=True)
    os.replace(build / "libmlxc.a", NATIVE / "lib" / "libmlxc.a")
    # A copy, so that no path into Cargo's registry outlives this run.
    shutil.copytree(source / "mlx" / "c", fresh(NATIVE / "include") / "mlx" / "c")
    shutil.rmtree(build)


def build_shim():
    """compile what mlx-rs calls and mlx-c has only on Apple's machines"""
    objects = fresh(NATIVE / "shim")
    include = [f"-I{NATIVE / 'include'}", "-isystem", wheel() / "include"]
    for source in sorted(SHIM.glob("*.c*")):
        if source.suffix == ".c":
            command = compiler("CC", "cc").split() + ["-std=c11"]
        else:
            command = compiler("CXX", "c++").split() + ["-std=c++20"] + include
        out = objects / (source.stem + ".o")
        run("shim", command + ["-O2", "-fPIC", "-Wall", "-c", source, "-o", out])
    library = NATIVE / "lib" / "libmtplx_shim.a"
    library.unlink(missing_ok=True)
    run("shim", ["ar", "rcs", library] + sorted(objects.glob("*.o")))


def write_bindings():
    """write the Rust bindings of mlx-c, by the crate mlx-bindings"""
    gcc_include = subprocess.run(
        compiler("CC", "cc").split() + ["-print-file-name=include"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    env = {
        "LIBCLANG_PATH": str(site_packages() / "clang" / "native"),
        # libclang's wheel has no headers of its own: stddef.h and its like are the compiler's.
        "BINDGEN_EXTRA_CLANG_ARGS": f'"-I{gcc_include}"',
    }
    out = fresh(NATIVE / "bindings") / "bindings.rs"
    helper = ["cargo", "run", "--quiet", "-p", "mlx-bindings", "--"]
    run("bindings", helper + [out, NATIVE / "include", SHIM], env)


def linux_config(target, revision):
    """Cargo reads `revision` as one more fact of the library: a new one rebuilds mlx-sys."""
    lib = wheel() / "lib"
    # A program finds its library beside itself, then in a `lib` beside its folder, then here.
    rpath = f"-Wl,-rpath,$ORIGIN,-rpath,$ORIGIN/../lib,-rpath,{lib}"
    return "\n".join([
        f"[target.{target}]",
        f"rustflags = {toml(['-C', 'link-arg=' + rpath])}",
        "",
        f"[target.{target}.mlx]",
        f"rustc-link-search = {toml([f'native={NATIVE}/lib', f'native={lib}'])}",
        f"rustc-link-lib = {toml(['static=mtplx_shim', 'static=mlxc', 'mlx', 'stdc++'])}",
        f"rustc-env = {{ OUT_DIR = {toml(f'{NATIVE}/bindings')} }}",
        f"include = {toml(f'{NATIVE}/include:{wheel()}/include')}",
        f"revision = {toml(revision)}",
        "",
    ])  # fmt: skip


def macos_config():
    """Without these mlx-sys would write below the user's home and want cmake on the PATH."""
    return "\n".join([
        "[env]",
        f"CMAKE = {toml(str(cmake()))}",
        f"MLX_RS_METAL_PATH = {toml(f'{NATIVE}/metal')}",
        "",
    ])  # fmt: skip


def write_config(text):
    text = CONFIG_MARK + text
    old = CONFIG.read_text() if CONFIG.exists() else ""
    if old == text:
        return
    if old and not old.startswith(CONFIG_MARK):
        raise SetupError(f"{CONFIG} is not mine: move it to a folder above this one, or away")
    say("config", "write .cargo/config.toml")
    CONFIG.parent.mkdir(exist_ok=True)
    draft = CONFIG.with_suffix(f".{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, CONFIG)


# Where things are.


def site_packages():
    found = glob.glob(str(VENV / "lib" / "python*" / "site-packages"))
    if len(found) != 1:
        raise SetupError(f"{VENV} is broken: remove it and run `make setup` again")
    return Path(found[0])


def wheel():
    return site_packages() / "mlx"


def cmake():
    """The program itself: the package's script names an absolute path that a move would break."""
    return site_packages() / "cmake" / "data" / "bin" / "cmake"


def venv_python():
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def locked_mlx_sys():
    """The version of mlx-sys that Cargo.lock names; Cargo writes the file where it is missing."""
    lock_file = ROOT / "Cargo.lock"
    if not lock_file.exists():
        mlx_sys_package()
    found = re.search(r'name = "mlx-sys"\nversion = "([^"]+)"', lock_file.read_text())
    return found.group(1) if found else mlx_sys_package()["version"]


def mlx_sys_package():
    """What Cargo knows of mlx-sys; fetches the crates, if need be."""
    command = ["cargo", "metadata", "--format-version", "1"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SetupError("cargo metadata failed, see above")
    found = [p for p in json.loads(done.stdout)["packages"] if p["name"] == "mlx-sys"]
    if len(found) != 1:
        raise SetupError(f"Cargo.lock names {len(found)} versions of mlx-sys, not one")
    return found[0]


def mlx_c_source():
    """mlx-c's source inside the crate, which must name the MLX that the wheel carries."""
    source = Path(mlx_sys_package()["manifest_path"]).parent / "src" / "mlx-c"
    wanted = re.search(r"GIT_TAG v([0-9.]+)", (source / "CMakeLists.txt").read_text()).group(1)
    if f"mlx-cpu=={wanted};" not in REQUIREMENTS.read_text():
        raise SetupError(f"mlx-sys wants MLX {wanted}: write mlx-cpu=={wanted} into {REQUIREMENTS}")
    return source


# How a step runs.


def step(name, action, inputs, also=""):
    """Runs `action` unless it ran with the same inputs; returns the digest of these."""
    key = digest(inputs, also + inspect.getsource(action))
    stamp = NATIVE / "stamp" / name
    if stamp.exists() and stamp.read_text() == key:
        return key
    stamp.unlink(missing_ok=True)
    say(name, inspect.getdoc(action))
    (NATIVE / "log").mkdir(exist_ok=True)
    log_file(name).unlink(missing_ok=True)
    start = time.monotonic()
    action()
    say(name, f"done in {time.monotonic() - start:.0f} s")
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(key)
    return key


def digest(inputs, also):
    """One name for the bytes of these files and folders; where they lie does not matter."""
    state = hashlib.sha256(also.encode())
    for given in inputs:
        files = sorted(given.rglob("*")) if given.is_dir() else [given]
        for file in files:
            if file.is_file():
                state.update(file.relative_to(HERE).as_posix().encode() + b"\0")
                state.update(file.read_bytes())
    return state.hexdigest()[:16]


def run(name, command, env=None):
    """Runs one command into the step's log; on failure shows the log's end."""
    command = [str(part) for part in command]
    with open(log_file(name), "a") as log:
        print("$", *command, file=log, flush=True)
        done = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
    if done.returncode != 0:
        tail = "\n".join(log_file(name).read_text(errors="replace").splitlines()[-25:])
        raise SetupError(f"step {name} failed; the end of {log_file(name)}:\n{tail}")


def succeeds(*command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def log_file(name):
    return NATIVE / "log" / f"{name}.txt"


def toml(value):
    """JSON's strings and lists of strings are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def say(name, text):
    print(f"setup: {name}: {text}", flush=True)


@contextlib.contextmanager
def lock():
    """One setup at a time: the second waits, and then finds all done."""
    with open(NATIVE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
