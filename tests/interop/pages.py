#!/usr/bin/env python3
"""The live page and the report in headless Chromium: what their controls do, and that their scripts raise no error.

run.sh names the browser in CAMLENS_CHROMIUM, and Playwright's folders in CAMLENS_PLAYWRIGHT.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from setting import PATIENCE_S, ROOT, Server, Table, Wrong, expect, free_port

sys.path[:0] = os.environ["CAMLENS_PLAYWRIGHT"].split(":")
from playwright.sync_api import Error, sync_playwright  # noqa: E402

BINARY = ROOT / "target/release/camlens"
PHOTOGRAPHS, CLIP = (ROOT / "deploy/demo-assets" / name for name in ("photographs", "clip.webp"))
# Grad-CAM and Guided Grad-CAM: the pages have every view.
PICTURES = ["--picture", "overlay", "--picture", "light"]
# Pictures that take long to decode: something always happens in the middle of it.
SLOW_PICTURES = """
const decode = window.createImageBitmap;
window.createImageBitmap = async blob => {
  const image = await decode(blob);
  await new Promise(done => setTimeout(done, 150));
  return image;
};
"""


class Page:
    """A page in the browser, and the errors of its scripts."""

    def __init__(self, browser, address, script=""):
        self.page, self.errors = browser.new_page(), []
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.add_init_script(script)
        self.page.goto(address)

    def text(self, selector):
        return self.page.inner_text(selector)

    def wait(self, condition, *arguments):
        """Waits until a function of JavaScript returns true."""
        self.page.wait_for_function(condition, arg=arguments)

    def picture(self, canvas):
        """The pixels of a canvas."""
        return self.page.eval_on_selector(canvas, "canvas => canvas.toDataURL()")

    def views(self, canvas):
        """Presses the button of each view; the picture that each shows."""
        pictures = {}
        for button in self.page.query_selector_all("[data-view]:not([data-view=all])"):
            expect(button.is_enabled(), f"there is no view {button.inner_text()}")
            button.click()
            self.wait("([canvas, name]) => document.querySelector(canvas).ariaLabel.startsWith(name)", canvas,
                      button.inner_text())  # fmt: skip
            pictures[button.inner_text()] = self.picture(canvas)
        expect(len(set(pictures.values())) == len(pictures) >= 4, f"of {list(pictures)}, some show the same picture")
        return pictures

    def no_error(self):
        expect(self.errors == [], f"errors of scripts: {self.errors}")


@contextlib.contextmanager
def stream(server, *arguments):
    """`camlens stream`, until the block ends."""
    command = [BINARY, "stream", *arguments, "--server", server.address]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def live_page(browser, address, server, folder, table):
    row = "live page"
    page = Page(browser, address, SLOW_PICTURES)
    canvas = "#pictures canvas"
    sequence = "() => document.querySelector('#says').textContent.match(/frame (\\d+)/)?.[1]"

    def waits_for_a_stream():
        page.wait("() => document.querySelector('#state').textContent === 'waiting for a stream'")
        expect(page.page.is_visible("#empty") and not page.page.is_visible("#stage"), "it shows a stream that is not")

    def shows_it():
        page.wait("() => document.querySelector('#state').textContent === 'live'")
        page.wait(f"([before]) => ({sequence})() > before", int(page.page.evaluate(sequence)))
        expect(page.page.is_visible("#stage") and page.text("#classes").strip() != "", "the page is empty")

    def pause():
        page.page.click("#pause")
        held = page.picture(canvas)
        page.page.wait_for_timeout(2000)
        expect(page.picture(canvas) == held, "the picture changed while the page was paused")
        expect(page.text("#state").startswith("paused"), f"the paused page says {page.text('#state')!r}")

    def views():
        page.views(canvas)
        page.page.click("[data-view=all]")
        shown = len(page.page.query_selector_all(canvas))
        expect(shown == 5, f"{shown} pictures, where all five views were asked for")

    def goes_on():
        before = int(page.page.evaluate(sequence))
        page.page.click("#pause")
        page.wait(f"([before]) => ({sequence})() > before", before)

    check(table, row, "waits for a stream", waits_for_a_stream)
    with stream(server, CLIP, "--repeat", "0", "--rate", "10", *PICTURES, "--out", folder / "live"):
        check(table, row, "shows it", shows_it)
        check(table, row, "pause holds the picture", pause)
        check(table, row, "views", views)
        check(table, row, "goes on", goes_on)
    check(table, row, "no script error", page.no_error)


def report(browser, server, folder, table):
    row, path = "report", folder / "report.html"
    with stream(server, PHOTOGRAPHS, *PICTURES, "--html", path, "--out", folder / "out") as process:
        process.wait(PATIENCE_S)
    page = Page(browser, path.as_uri())
    frames = json.loads(page.page.inner_text("#frames"))["frames"]

    def names(of_frames):
        return [frame["n"] for frame in of_frames]

    def listed():
        """The frames of the list, in its order."""
        labels = page.page.eval_on_selector_all("#list button", "all => all.map(one => one.ariaLabel)")
        return [re.fullmatch(r"(.*): .*, [\d.]+ %", label)[1] for label in labels]

    def shows_it():
        page.wait("() => document.querySelector('#below').ariaLabel?.startsWith('Overlay')")
        expect(listed() == names(frames) and len(frames) > 2, f"the list shows {listed()}")

    def sort():
        orders = {
            "surest": lambda frame: -frame["p"][0][1],
            "unsure": lambda frame: frame["p"][0][1],
            "slowest": lambda frame: -sum(frame["s"]),
            "class": lambda frame: frame["p"][0][0].lower(),
        }
        for name, key in orders.items():
            page.page.select_option("#sort", name)
            expect(listed() == names(sorted(frames, key=key)), f"{name}: {listed()}")
        page.page.select_option("#sort", "order")
        expect(listed() == names(frames), f"as they came: {listed()}")

    def filtered():
        wanted = frames[1]["p"][0][0]
        page.page.select_option("#class", wanted)
        expect(listed() == names(frame for frame in frames if frame["p"][0][0] == wanted), f"{wanted}: {listed()}")
        page.page.select_option("#class", "")
        shares = sorted(frame["p"][0][1] for frame in frames)
        least = int(50 * (shares[0] + shares[-1]))
        page.page.fill("#least", str(least))
        left = [frame for frame in frames if frame["p"][0][1] >= least / 100]
        expect(listed() == names(left) and 0 < len(left) < len(frames), f"at least {least} %: {listed()}")
        page.page.fill("#least", "0")
        expect(listed() == names(frames), f"all: {listed()}")

    def pause():
        page.page.click("#play")
        page.wait("([before]) => document.querySelector('#place').textContent !== before", page.text("#place"))
        page.page.click("#play")
        held = page.text("#place"), page.picture("#below")
        page.page.wait_for_timeout(1000)
        expect((page.text("#place"), page.picture("#below")) == held, "the frame changed while the report was paused")

    def slider():
        page.page.fill("#wipe", "40")
        clip = page.page.eval_on_selector("#above", "canvas => canvas.style.clipPath")
        expect("60%" in clip, f"the frame over the overlay is cut by {clip}")

    check(table, row, "shows it", shows_it)
    check(table, row, "views", lambda: page.views("#below"))
    check(table, row, "sort", sort)
    check(table, row, "filter", filtered)
    check(table, row, "pause holds the picture", pause)
    check(table, row, "slider", slider)
    check(table, row, "no script error", page.no_error)


def check(table, row, column, made):
    """Makes a check; what the browser could not do is wrong, too."""

    def in_browser():
        try:
            made()
        except Error as error:
            raise Wrong(error.message) from error

    table.check(row, column, in_browser)


def main():
    table = Table("page")
    temporary = tempfile.TemporaryDirectory(prefix="camlens-", ignore_cleanup_errors=True)
    with temporary as folder, sync_playwright() as play:
        folder, port = pathlib.Path(folder), free_port()
        server = Server(folder, "--view-listen", f"127.0.0.1:{port}")
        # The browser's own sandbox does not run as root.
        browser = play.chromium.launch(executable_path=os.environ["CAMLENS_CHROMIUM"], chromium_sandbox=False)
        live_page(browser, f"http://127.0.0.1:{port}/", server, folder, table)
        report(browser, server, folder, table)
        browser.close()
        expect(server.stop() == 0, server.output())
        table.end("pages.md")


if __name__ == "__main__":
    main()
