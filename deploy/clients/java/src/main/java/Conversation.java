import camlens.v1.Explain.ExplainStreamRequest;
import camlens.v1.Explain.ExplainStreamResponse;
import camlens.v1.ExplainServiceGrpc.ExplainServiceStub;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.util.concurrent.CompletableFuture;

/** One stream, from Open to its status: it sends within the credit and reads how each frame ends. */
final class Conversation implements StreamObserver<ExplainStreamResponse> {
  private final Frames frames;
  private final CompletableFuture<Status> end = new CompletableFuture<>();
  private final StreamObserver<ExplainStreamRequest> requests;
  private long credit;
  private long accepted = Long.MAX_VALUE; // without GoingAway any frame that was sent may have been accepted

  Conversation(Frames frames, ExplainServiceStub stub) {
    this.frames = frames;
    requests = stub.explainStream(this);
  }

  Status run() {
    requests.onNext(frames.open());
    Status status = end.join();
    frames.waiting.addAll(frames.sent.tailSet(accepted, false));
    frames.sent.removeAll(frames.waiting);
    frames.end("lost", 0, accepted, accepted); // or send them again, where explaining one twice does no harm
    return status;
  }

  @Override
  public void onNext(ExplainStreamResponse response) {
    switch (response.getMessageCase()) {
      case OPENED -> {
        credit = response.getOpened().getMaxInFlight();
        frames.counts.merge("connections", 1, Integer::sum);
      }
      case EXPLANATION -> {
        var explanation = response.getExplanation();
        frames.write(explanation.getSequence(), explanation.getTargets(0).getPictures(0).getData());
        frames.end("explained", explanation.getSequence(), explanation.getSequence(), 1);
      }
      case DROPPED -> {
        var run = response.getDropped();
        frames.end("dropped", run.getFirstSequence(), run.getLastSequence(), run.getCount());
      }
      case FRAME_ERROR -> {
        var error = response.getFrameError();
        System.err.println(error.getMessage());
        frames.end("failed", error.getSequence(), error.getSequence(), 1);
      }
      case GOING_AWAY -> {
        credit = 0;
        accepted = response.getGoingAway().getLastAcceptedSequence(); // 0: no frame was accepted
      }
      default -> { }
    }
    while (frames.sent.size() < credit && !frames.waiting.isEmpty()) {
      long sequence = frames.waiting.pollFirst();
      frames.sent.add(sequence);
      requests.onNext(ExplainStreamRequest.newBuilder().setFrame(frames.frame(sequence)).build());
    }
    if (frames.sent.isEmpty() && frames.waiting.isEmpty()) {
      requests.onCompleted();
    }
  }

  @Override
  public void onError(Throwable error) {
    end.complete(Status.fromThrowable(error));
  }

  @Override
  public void onCompleted() {
    end.complete(Status.OK);
  }
}
