"""Parses a source with libclang, which the setup fetches, and fails on what it finds wrong."""

import sys

from clang.cindex import Index

parsed = Index.create().parse(sys.argv[1], args=sys.argv[2:])
found = [d for d in parsed.diagnostics if d.severity >= 2]
for diagnostic in found:
    print(diagnostic)
sys.exit(bool(found))
