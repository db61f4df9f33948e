#!/usr/bin/env python3
"""Plants a violation of every rule of `check.py` into a small tree, and sees it found."""

import pathlib
import tempfile
import unittest
from unittest import mock

import check
import imports
import rooms

SOUND = {
    "README.md": "Run `deploy/demo`; see [the code](src/README.md).\n",
    "deploy/demo": "#!/bin/sh\n",
    "src/README.md": "A frame is decoded in `frame/decode.rs`.\n",
    "src/lib.rs": "".join(f"//! - [`{room}`]\n" for room in rooms.ROOMS)
                  + "".join(f"pub mod {room};\n" for room in rooms.ROOMS),
    "src/frame/mod.rs": "mod decode;\nmod error;\npub use decode::decode;\npub use error::FrameError;\n",
    "src/frame/decode.rs": "use super::FrameError;\npub fn decode() {}\n",
    "src/frame/error.rs": "pub enum FrameError {}\n",
    "src/schedule/mod.rs": "use crate::frame::decode;\n",
    "src/stream/mod.rs": "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n    fn f() { Instant::now(); }\n}\n",
}


class Planted(unittest.TestCase):
    def found(self, name, files):
        """What a check finds in the sound tree with these files laid over it."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            tree = SOUND | files
            for path, text in tree.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
            return list(check.CHECKS[name](check.Tree(root, list(tree))))

    def finds(self, name, files, *messages):
        found = self.found(name, files)
        self.assertEqual(len(found), len(messages), found)
        for line, message in zip(found, messages):
            self.assertIn(message, line)

    def test_nothing_is_found_in_a_sound_tree(self):
        for name in check.CHECKS:
            self.finds(name, {})

    def test_a_long_line_is_found_and_a_table_is_not(self):
        long = "x" * 121
        self.finds("columns", {"src/frame/raw.rs": f"{long}\n"}, "src/frame/raw.rs:1: 121 columns")
        self.finds("columns", {"src/view/page/live.js": f"{long}\n"}, "src/view/page/live.js:1")
        self.finds("columns", {"deploy/demo": f"#!/bin/sh\n{long}\n"}, "deploy/demo:2")
        self.finds("columns", {"README.md": f"{long}\n| {long} |\n```\n{long}\n```\n```sh\n{long}\n```\n"},
                   "README.md:1:", "README.md:7:")
        self.finds("columns", {"tests/fixtures/words": f"{long}\n", "deploy/grafana/board.json": f"{long}\n"})

    def test_an_arrow_upward_is_found(self):
        self.finds("rooms_and_arrows", {"src/plan/mod.rs": "// crate::explain\nuse crate::explain::Maps;\n"},
                   "src/plan/mod.rs:2: plan must not import explain")
        self.finds("rooms_and_arrows", {"src/plan/mod.rs": "#[cfg(test)]\nmod tests { use crate::server::Server; }\n"},
                   "plan must not import server")
        self.finds("rooms_and_arrows", {"src/server/quota/mod.rs": "use crate::proto::v1;\n"},
                   "server must not import proto")
        self.finds("rooms_and_arrows", {"src/server/camlens/mod.rs": "use crate::proto::v1;\n"})
        with mock.patch.dict(rooms.ROOMS, {"torch": "plan"}):
            self.finds("rooms_and_arrows", {}, "torch may import plan, which is not below it")
        self.finds("rooms_and_arrows", {"src/attic/mod.rs": ""}, "the room attic is not in")
        self.finds("rooms_and_arrows", {"src/plan/mod.rs": "use crate::{model, torch};\n"}, "one `use crate::ROOM`")

    def test_a_map_that_lacks_a_room_is_found(self):
        text = SOUND["src/lib.rs"]
        self.finds("the_map", {"src/lib.rs": text.replace("pub mod plan;\n", "")}, "the room plan is not both")
        self.finds("the_map", {"src/lib.rs": text.replace("//! - [`plan`]\n", "")}, "does not mention [`plan`]")

    def test_impurity_is_found(self):
        self.finds("purity", {"src/plan/mod.rs": "use tokio::sync::Mutex;\n"}, "src/plan/mod.rs:1: tokio")
        self.finds("purity", {"src/model/mod.rs": "fn f() { tracing::info!(\"x\"); }\n"}, "tracing in a pure room")
        self.finds("purity", {"src/schedule/queue/line.rs": "fn f() { Instant::now(); }\n"}, "where time is passed in")
        self.finds("purity", {"src/schedule/engine.rs": "fn f() { Instant::now(); tracing::info!(\"x\"); }\n"})

    def test_unsafe_code_is_found(self):
        self.finds("unsafe_code", {"src/frame/raw.rs": "/// unsafe {\nfn f() { unsafe { g() } }\n"}, "raw.rs:2")
        self.finds("unsafe_code", {"src/torch/ffi.rs": "unsafe extern \"C\" {}\n", "src/process.rs": "unsafe {}\n"})

    def test_a_file_beside_its_folder_is_found(self):
        self.finds("module_style", {"src/frame.rs": ""}, "move it to src/frame/mod.rs")

    def test_a_circle_is_found_through_a_re_export(self):
        self.finds("circles", {"src/frame/error.rs": "use super::decode;\npub enum FrameError {}\n"},
                   "frame/decode.rs, frame/error.rs")
        self.finds("circles", {"src/frame/error.rs": "#[cfg(test)]\nmod tests {\n    use super::super::decode;\n}\n"
                                                     "pub enum FrameError {}\n"})
        three = {"src/frame/a.rs": "use super::b::{B, C as D};\npub struct A;\n",
                 "src/frame/b.rs": "use crate::frame::c::C;\npub struct B;\n",
                 "src/frame/c.rs": "pub struct C;\nfn f() { super::a::A; }\n"}
        self.finds("circles", three, "frame/a.rs, frame/b.rs, frame/c.rs")

    def test_a_path_that_does_not_exist_is_found(self):
        self.finds("paths_in_prose", {"README.md": "See `deploy/{demo,tset}` and [it](proto/README.md).\n"},
                   "there is no proto/README.md", "there is no deploy/tset")
        self.finds("paths_in_prose", {"src/README.md": "`frame/decod.rs`, `frame/*.rs`, `http/protobuf`\n"},
                   "src/README.md:1: there is no frame/decod.rs")
        self.finds("paths_in_prose", {"README.md": "```sh\ndeploy/dmeo     # a command\n```\n"}, "no deploy/dmeo")

    def test_a_stranger_at_the_top_is_found(self):
        self.finds("the_tree", {"scripts/x.sh": ""}, "scripts does not belong")

    def test_paths_are_read_as_rust_reads_them(self):
        self.assertEqual(imports.expand("a::{b, c::{self, d as e}}"), ["a::b", "a::c::self", "a::c::d as e"])
        self.assertEqual(imports.code("f('\"'); // x\ng(\"// y\"); r#\"a\"b\"#"), "f(); \ng(); ")


if __name__ == "__main__":
    unittest.main()
