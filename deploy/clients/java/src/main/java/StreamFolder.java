import camlens.v1.ExplainServiceGrpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.ThreadLocalRandom;

/** StreamFolder FOLDER OUT: the connection, and a new one while frames wait. */
public final class StreamFolder {
  static final String SERVER = setting("CAMLENS_SERVER"), CA = setting("CAMLENS_TLS_CA");

  static String setting(String name) {
    String value = System.getenv(name);
    return value == null ? "" : value;
  }

  static ManagedChannel connect(EpollEventLoopGroup sockets) throws Exception {
    NettyChannelBuilder builder;
    if (SERVER.startsWith("unix:")) {
      // Netty knows Unix sockets, gRPC's own addresses do not; the authority would be the socket's path.
      DomainSocketAddress socket = new DomainSocketAddress(SERVER.substring("unix:".length()));
      builder = NettyChannelBuilder.forAddress(socket).overrideAuthority("localhost");
      builder.channelType(EpollDomainSocketChannel.class).eventLoopGroup(sockets);
    } else {
      builder = NettyChannelBuilder.forTarget(SERVER);
    }
    if (CA.isEmpty()) {
      builder.usePlaintext();
    } else {
      builder.sslContext(GrpcSslContexts.forClient().trustManager(new File(CA)).build());
    }
    Metadata metadata = new Metadata();
    if (!setting("CAMLENS_TOKEN").isEmpty()) {
      Metadata.Key<String> key = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
      metadata.put(key, "Bearer " + setting("CAMLENS_TOKEN"));
    }
    return builder.maxInboundMessageSize(1 << 30).intercept(MetadataUtils.newAttachHeadersInterceptor(metadata)).build();
  }

  public static void main(String[] arguments) throws Exception {
    EpollEventLoopGroup sockets = new EpollEventLoopGroup(1);
    Frames frames;
    try (var files = Files.list(Path.of(arguments[0]))) {
      frames = new Frames(files.sorted().toList(), Path.of(arguments[1]));
    }
    for (int tries = 0; !frames.waiting.isEmpty(); tries++) {
      int before = frames.waiting.size();
      ManagedChannel channel = connect(sockets); // a server that goes away is left for another connection
      Status status = new Conversation(frames, ExplainServiceGrpc.newStub(channel)).run();
      channel.shutdownNow();
      boolean mayPass = switch (status.getCode()) {
        case OK, UNAVAILABLE, INTERNAL, UNKNOWN, CANCELLED -> true;
        default -> false; // the server's own word: another try would end in the same way
      };
      if (!mayPass || tries == 20) {
        throw status.asException();
      }
      tries = frames.waiting.size() < before ? 0 : tries;
      if (!frames.waiting.isEmpty()) {
        // A random part of 0.1, 0.2, 0.4, … 5 s: clients of a server that restarts do not all come at once.
        Thread.sleep((long) (ThreadLocalRandom.current().nextDouble() * Math.min(5000, 100 << Math.min(tries, 10))));
      }
    }
    System.out.println(frames.counts);
    sockets.shutdownGracefully();
  }
}
