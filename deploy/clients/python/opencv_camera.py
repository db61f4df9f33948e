"""Explains a camera that OpenCV reads, live: opencv_camera.py ADDRESS [OUT]. Without OUT it opens a window.

Escape, in the window, or Ctrl-C ends it.
"""

import contextlib
import pathlib
import sys
import time

import camlens
import cv2


def camera(address):
    """The frames of the camera, without an end: it is opened again when it ends."""
    while True:
        capture = cv2.VideoCapture(address)
        while (read := capture.read())[0]:
            yield camlens.Frame(read[1], capture_time=time.time())
        capture.release()
        time.sleep(1)


def show(picture, sequence, out):
    """Writes the picture, or shows it. Returns whether to go on."""
    if out is not None:
        return cv2.imwrite(str(out / f"{sequence:06}.jpg"), picture)
    cv2.imshow("what the model looks at", picture)
    return cv2.waitKey(1) != 27


if __name__ == "__main__":
    address, out = sys.argv[1], pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    # A number is a device: 0 is /dev/video0.
    frames = camera(int(address) if address.isdigit() else address)
    answers = camlens.stream(frames, policy="latest", color="bgr", maps=["grad_cam"], element_type="uint8")
    with contextlib.suppress(KeyboardInterrupt), answers:
        for answer in answers:
            if answer.ok and not show(answer.draw(answer.source.image, color="bgr"), answer.sequence, out):
                break
