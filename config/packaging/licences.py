#!/usr/bin/env python3
"""Prints the licences of everything that a release holds besides this project: the crates that the
program is made of, and MLX with the libraries that its wheel brings. Each text stands once, with
the names of those that have it.

    python3 config/packaging/licences.py [TARGET] > THIRD-PARTY.txt

Ends with 1, and names it, where a crate has neither a text of its own nor a licence whose text is
known here.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = re.compile(r"^(licen[cs]e|copying|notice|unlicense|copyright)", re.I)
# GNU's, of the Fortran runtime that LAPACK in MLX's wheel for Linux needs.
FORTRAN = "libgfortran (GPL-3.0 with the GCC Runtime Library Exception), libquadmath (LGPL-2.1)"
DEBIAN = Path("/usr/share/common-licenses")


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    command += ["--filter-platform", target]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def host():
    said = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return re.search(r"^host: (.*)$", said, re.M).group(1)


def crates(target):
    """The foreign packages of which code is linked into the program: tests' and build scripts' are
    not among them."""
    known = metadata(target)
    packages = {package["id"]: package for package in known["packages"]}
    nodes = {node["id"]: node for node in known["resolve"]["nodes"]}
    first = next(p["id"] for p in known["packages"] if p["name"] == "mtplx" and not p["source"])
    found, waiting = set(), [first]
    while waiting:
        at = waiting.pop()
        if at in found:
            continue
        found.add(at)
        for edge in nodes[at]["deps"]:
            if any(kind["kind"] is None for kind in edge["dep_kinds"]):
                waiting.append(edge["pkg"])
    foreign = [packages[at] for at in found if packages[at]["source"]]
    return sorted(foreign, key=lambda package: (package["name"], package["version"]))


def texts_in(folder):
    files = [file for file in folder.iterdir() if file.is_file() and TEXTS.match(file.name)]
    return [file.read_text(errors="replace").strip() for file in sorted(files)]


def of_crate(package):
    found = texts_in(Path(package["manifest_path"]).parent)
    if found:
        return found
    # A crate may name its licence and bring no text. Ours is one of those it can be had under.
    named = package["license"] or ""
    if "Apache-2.0" in named:
        return [(ROOT / "LICENSE").read_text().strip()]
    for licence, text in SHORT.items():
        if licence in named:
            return [text.format(authors=", ".join(package["authors"]) or package["name"])]
    return []


SHORT = {
    "MIT": """Copyright (c) {authors}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.""",
}


def native(target, mlx_sys):
    """MLX and mlx-c, and what MLX's wheel for Linux brings along."""
    mlx_c = Path(mlx_sys["manifest_path"]).parent / "src" / "mlx-c"
    yield "mlx-c", texts_in(mlx_c)
    if "linux" not in target:
        # MLX is of the same makers and under the same licence; its build fetches the source.
        yield "MLX", texts_in(mlx_c)
        return
    folders = list((ROOT / ".native" / "venv" / "lib").glob("python*/site-packages/mlx_cpu-*"))
    if not folders:
        yield "MLX", []
    for folder in folders:
        yield "MLX", texts_in(folder / "licenses")
        for bom in sorted((folder / "sboms").glob("*.json")):
            yield "parts of MLX's wheel, as it lists them", [bom.read_text().strip()]
    yield "BLAS and LAPACK (reference implementation, modified BSD)", [LAPACK]
    names = ["GPL-3", "LGPL-2.1"]
    yield FORTRAN, [(DEBIAN / name).read_text() for name in names if (DEBIAN / name).exists()]


LAPACK = """Copyright (c) 1992-2021 The University of Tennessee and The University of Tennessee
Research Foundation. Copyright (c) 2000-2021 The University of California Berkeley. Copyright (c)
2006-2021 The University of Colorado Denver. All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met: redistributions of source code must retain the above
copyright notice, this list of conditions and the following disclaimer; redistributions in binary
form must reproduce them in the documentation and/or other materials provided with the distribution;
neither the name of the copyright holders nor the names of its contributors may be used to endorse
or promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR
IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND
FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED."""


def main():
    target = sys.argv[1] if len(sys.argv) > 1 else host()
    linked = crates(target)
    owners = {}
    lacking = []
    mlx_sys = next(package for package in linked if package["name"] == "mlx-sys")
    for name, texts in native(target, mlx_sys):
        if not texts:
            lacking.append(name)
        for text in texts:
            owners.setdefault(text, []).append(name)
    print(f"What mtplx for {target} holds besides itself\n")
    for package in linked:
        name = f"{package['name']} {package['version']}"
        print(f"{name}  {package['license'] or 'see its text'}  {package['repository'] or ''}")
        texts = of_crate(package)
        if not texts:
            lacking.append(name)
        for text in texts:
            owners.setdefault(text, []).append(name)
    for text, names in owners.items():
        print(f"\n{'=' * 80}\n{', '.join(names)}\n{'-' * 80}\n{text}")
    if lacking:
        sys.exit(f"licences: no text is known of {', '.join(lacking)}")


if __name__ == "__main__":
    main()
