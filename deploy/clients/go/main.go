// Streams a folder of pictures to camlens and writes an overlay of each. ../README.md explains the steps.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "camlens.example/streamfolder/gen/camlens/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// connect opens a stream on a connection of its own. grpc-go's authority for a Unix socket is "localhost" already.
func connect(ctx context.Context) (stream pb.ExplainService_ExplainStreamClient, closes func(), err error) {
	tls, ca := insecure.NewCredentials(), os.Getenv("CAMLENS_TLS_CA")
	if ca != "" {
		tls, err = credentials.NewClientTLSFromFile(ca, "")
		check(err)
	}
	channel, err := grpc.NewClient(os.Getenv("CAMLENS_SERVER"), grpc.WithTransportCredentials(tls),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	check(err)
	if token := os.Getenv("CAMLENS_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err = pb.NewExplainServiceClient(channel).ExplainStream(ctx)
	return stream, func() { channel.Close() }, err
}

// What a connection that broke is called, also by proxies: another try may succeed.
var mayPass = []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.Canceled}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	files, _ = filepath.Glob(filepath.Join(os.Args[1], "*"))
	for s := range files {
		waiting = append(waiting, uint64(s+1))
	}
	timeout, err := time.ParseDuration(cmp.Or(os.Getenv("CAMLENS_TIMEOUT"), "24h")) // of the whole stream
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for tries := 0; len(waiting) > 0; tries++ {
		before, isLast := len(waiting), tries == 20
		stream, closes, err := connect(ctx)
		if err == nil {
			err = converse(stream)
		}
		closes()
		if isLast || err != io.EOF && !slices.Contains(mayPass, status.Code(err)) {
			log.Fatal(err) // the server's own word: another try would end in the same way
		}
		if len(waiting) < before {
			tries = 0
		}
		if len(waiting) > 0 { // a random part of 0.1, 0.2, 0.4, … 5 s: clients of a server that restarts come one by one
			time.Sleep(rand.N(min(5*time.Second, 100*time.Millisecond<<min(tries, 10))))
		}
	}
	fmt.Println(counts)
}
