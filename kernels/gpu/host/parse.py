"""Parses a source with libclang, which the setup fetches, and fails on what it finds wrong, and on
a kernel whose threadgroup shares more than Apple's GPUs have room for."""

import sys
from collections import Counter

from clang.cindex import CursorKind, Index, StorageClass

ROOM = 32 << 10

parsed = Index.create().parse(sys.argv[1], args=sys.argv[2:])
found = [d for d in parsed.diagnostics if d.severity >= 2]


def kernels(cursor, names=()):
    """Functions with a body, by their full names."""
    for child in cursor.get_children():
        if child.kind == CursorKind.NAMESPACE:
            yield from kernels(child, (*names, child.spelling))
        elif child.kind == CursorKind.FUNCTION_DECL and child.is_definition():
            yield "::".join((*names, child.spelling)), child


shared = Counter()
for name, kernel in kernels(parsed.cursor):
    for cursor in kernel.walk_preorder():
        # LOCAL is written so.
        if cursor.kind == CursorKind.VAR_DECL and cursor.storage_class == StorageClass.STATIC:
            shared[name] += cursor.type.get_size()
found += [f"{name} shares {size} bytes" for name, size in shared.items() if size > ROOM]
if not shared:
    found.append("no kernel shares anything: nothing was looked at")
for diagnostic in found:
    print(diagnostic)
sys.exit(bool(found))
