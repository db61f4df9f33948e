import camlens.v1.Explain.ExplainStreamRequest;
import camlens.v1.Explain.Open;
import camlens.v1.Explain.StreamPolicy;
import camlens.v1.FrameOuterClass.Frame;
import camlens.v1.Image.EncodedImage;
import camlens.v1.Image.ImageFormat;
import camlens.v1.Options.ExplainOptions;
import camlens.v1.Options.Picture;
import camlens.v1.Options.PictureOutput;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;

/** Where each frame is, and its files. A frame's sequence is its file's index + 1. */
final class Frames {
  private final List<Path> files;
  private final Path out;
  /** Frames to send. */
  final TreeSet<Long> waiting = new TreeSet<>();
  /** Frames in flight: sent on this connection and not ended. */
  final TreeSet<Long> sent = new TreeSet<>();
  /** How frames ended. */
  final Map<String, Integer> counts = new TreeMap<>();

  Frames(List<Path> files, Path out) {
    this.files = files;
    this.out = out;
    for (long sequence = 1; sequence <= files.size(); sequence++) {
      waiting.add(sequence);
    }
  }

  /** Ends up to `count` frames in flight, from `first` to `last`. */
  void end(String how, long first, long last, long count) {
    for (Long sequence : sent.subSet(first, true, last, true).stream().limit(count).toList()) {
      sent.remove(sequence);
      counts.merge(how, 1, Integer::sum);
    }
  }

  /** What is asked for: an overlay of each frame. */
  ExplainStreamRequest open() {
    var overlay = PictureOutput.newBuilder().setPicture(Picture.PICTURE_OVERLAY).setFormat(ImageFormat.IMAGE_FORMAT_PNG);
    var latest = StreamFolder.setting("CAMLENS_OVERFLOW").equals("LATEST"); // for cameras
    var overflow = latest ? StreamPolicy.Overflow.OVERFLOW_LATEST : StreamPolicy.Overflow.OVERFLOW_BLOCK;
    var open = Open.newBuilder().setOptions(ExplainOptions.newBuilder().addPictures(overlay));
    open.setPolicy(StreamPolicy.newBuilder().setOverflow(overflow));
    return ExplainStreamRequest.newBuilder().setOpen(open).build();
  }

  Frame frame(long sequence) {
    try {
      var data = ByteString.copyFrom(Files.readAllBytes(files.get((int) sequence - 1)));
      return Frame.newBuilder().setSequence(sequence).setEncoded(EncodedImage.newBuilder().setData(data)).build();
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  void write(long sequence, ByteString overlay) {
    try {
      Files.write(out.resolve(files.get((int) sequence - 1).getFileName() + ".png"), overlay.toByteArray());
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
