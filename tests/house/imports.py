"""The `use` declarations of a Rust crate: which file imports which, and what a path leads to.

This reads text, not Rust. It knows `use` with braces, `as` and `self`, inline paths that begin with `crate`, `self` or
`super`, and re-exports, which it follows to the file that defines the name. Glob imports and `#[cfg(test)]` modules
are left out. A name that it cannot find imports nothing.
"""

import re

LITERAL = re.compile(r"""//[^\n]*|r(#+)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\[^']+|[^'\\])'""", re.S)
DEFINITION = re.compile(r"\b(?:struct|enum|union|fn|trait|const|static|type|macro_rules!) +(\w+)")
USE = re.compile(r"\b(pub(?:\([^)]*\))? )?use ([^;]+);")
INLINE = re.compile(r"\b(?:crate|self|super)(?:::\w+)+")
TEST_FILE = re.compile(r"#\[cfg\(test\)\](?:\s*#\[[^\]]*\])*\s*(?:pub(?:\([^)]*\))? )?mod (\w+);")
TEST_BLOCK = re.compile(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))? )?mod \w+ \{")


def code(text):
    """Rust source with comments and the contents of literals blanked; lines keep their numbers."""
    return LITERAL.sub(lambda found: "\n" * found[0].count("\n"), text)


def without_tests(text):
    """Code up to its block of unit tests, which is the last item of a file."""
    found = TEST_BLOCK.search(text)
    return text[:found.start()] if found else text


def split(body):
    """The comma-separated parts of a `use` group, nested groups kept whole."""
    parts, depth, part = [], 0, ""
    for letter in body:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [part.strip() for part in [*parts, part] if part.strip()]


def expand(use):
    """`a::{b, c::{self, d as e}}` -> `[a::b, a::c::self, a::c::d as e]`."""
    head, brace, rest = use.partition("{")
    if not brace:
        return [" ".join(use.split())]
    return [path for part in split(rest.rpartition("}")[0]) for path in expand(head + part)]


def module_of(path):
    """`plan/cpu/mod.rs` -> `("plan", "cpu")`; `lib.rs` -> `()`."""
    parts = path.removesuffix(".rs").split("/")
    return tuple(parts[:-1] if parts[-1] in ("mod", "lib", "main") else parts)


class Crate:
    """`sources`: text by path, relative to `src/`."""

    def __init__(self, sources):
        self.files = {module_of(path): path for path in sources if path != "main.rs"}
        self.definitions, self.names, self.paths, tests = {}, {}, {}, set()
        for module, path in self.files.items():
            whole = code(sources[path])
            tests |= {(*module, name) for name in TEST_FILE.findall(whole)}
            text = without_tests(whole)
            self.definitions[module] = set(DEFINITION.findall(text))
            self.names[module], self.paths[module] = {}, []
            for public, use in USE.findall(text):
                for path_ in expand(use):
                    path_, _, name = path_.partition(" as ")
                    segments = path_.removesuffix("::self").split("::")
                    self.names[module][name or segments[-1]] = segments
                    if not public:
                        self.paths[module].append(segments)
            self.paths[module] += [path_.split("::") for path_ in INLINE.findall(USE.sub("", text))]
        self.files = {m: p for m, p in self.files.items() if not any(m[:len(test)] == test for test in tests)}

    def resolve(self, module, segments, depth=0):
        """The module whose file defines what a path leads to; None when it is not found."""
        here, rest = module, list(segments)
        if rest[0] == "crate":
            here, rest = (), rest[1:]
        elif rest[0] in ("self", "super"):
            while rest and rest[0] in ("self", "super"):
                here, rest = here[:-1] if rest[0] == "super" else here, rest[1:]
        elif (*here, rest[0]) not in self.files:
            return None
        for position, name in enumerate(rest):
            if (*here, name) in self.files:
                here = (*here, name)
            elif name in self.definitions.get(here, ()):
                return here
            else:
                alias = self.names.get(here, {}).get(name)
                if alias is None or depth > 16:
                    return None
                return self.resolve(here, alias + rest[position + 1:], depth + 1)
        return here

    def imports(self):
        """Which modules each module imports. A folder's own file may use what is in the folder: that is not counted."""
        edges = {}
        for module in self.files:
            found = {self.resolve(module, segments) for segments in self.paths[module]}
            edges[module] = {to for to in found if to in self.files and to[:len(module)] != module}
        return edges

    def circles(self):
        """Groups of files that import each other, directly or through others, as sorted lists of paths."""
        edges, order, low, stack, groups = self.imports(), {}, {}, [], []

        def visit(module):
            order[module] = low[module] = len(order)
            stack.append(module)
            for to in edges[module]:
                if to not in order:
                    visit(to)
                if to in stack:
                    low[module] = min(low[module], low[to])
            if low[module] == order[module]:
                group = stack[stack.index(module):]
                del stack[stack.index(module):]
                if len(group) > 1:
                    groups.append(sorted(self.files[member] for member in group))

        for module in edges:
            if module not in order:
                visit(module)
        return sorted(groups)
