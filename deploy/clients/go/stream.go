package main

import (
	"log"
	"os"
	"path/filepath"

	pb "camlens.example/streamfolder/gen/camlens/v1"
)

var files []string            // a frame's sequence is its file's index + 1
var waiting []uint64          // frames to send
var sent = map[uint64]bool{}  // frames in flight: sent on this connection and not ended
var counts = map[string]int{} // how frames ended

func end(how string, first, last, count uint64) { // ends up to `count` frames in flight, from `first` to `last`
	for s := first; s <= last && count > 0; s++ {
		if sent[s] {
			delete(sent, s)
			counts[how]++
			count--
		}
	}
}

// converse holds one stream, from Open to its status: it sends within the credit and reads how each frame ends.
func converse(stream pb.ExplainService_ExplainStreamClient) error {
	overlay := []*pb.PictureOutput{{Picture: pb.Picture_PICTURE_OVERLAY, Format: pb.ImageFormat_IMAGE_FORMAT_PNG}}
	overflow := pb.StreamPolicy_OVERFLOW_BLOCK
	if os.Getenv("CAMLENS_OVERFLOW") == "LATEST" { // for cameras
		overflow = pb.StreamPolicy_OVERFLOW_LATEST
	}
	open := &pb.Open{Options: &pb.ExplainOptions{Pictures: overlay}, Policy: &pb.StreamPolicy{Overflow: overflow}}
	stream.Send(&pb.ExplainStreamRequest{Message: &pb.ExplainStreamRequest_Open{Open: open}})
	credit, accepted := 0, uint64(len(files)) // without GoingAway any frame that was sent may have been accepted
	for {
		response, err := stream.Recv() // it also has the status of a stream that Send finds broken
		if err != nil {
			for s := uint64(len(files)); s > accepted; s-- {
				if sent[s] {
					delete(sent, s)
					waiting = append([]uint64{s}, waiting...)
				}
			}
			end("lost", 1, accepted, accepted) // or send them again, where explaining one twice does no harm
			return err
		}
		switch m := response.Message.(type) {
		case *pb.ExplainStreamResponse_Opened:
			credit = int(m.Opened.MaxInFlight)
			counts["connections"]++
		case *pb.ExplainStreamResponse_Explanation:
			s := m.Explanation.Sequence
			name := filepath.Join(os.Args[2], filepath.Base(files[s-1])+".png")
			check(os.WriteFile(name, m.Explanation.Targets[0].Pictures[0].Data, 0o644))
			end("explained", s, s, 1)
		case *pb.ExplainStreamResponse_FrameError:
			log.Print(m.FrameError)
			end("failed", m.FrameError.Sequence, m.FrameError.Sequence, 1)
		case *pb.ExplainStreamResponse_Dropped:
			end("dropped", m.Dropped.FirstSequence, m.Dropped.LastSequence, m.Dropped.Count)
		case *pb.ExplainStreamResponse_GoingAway:
			credit, accepted = 0, m.GoingAway.GetLastAcceptedSequence() // 0: no frame was accepted
		}
		for ; len(sent) < credit && len(waiting) > 0; waiting = waiting[1:] {
			data, err := os.ReadFile(files[waiting[0]-1])
			check(err)
			image := &pb.Frame_Encoded{Encoded: &pb.EncodedImage{Data: data}}
			frame := &pb.Frame{Sequence: waiting[0], Payload: image}
			sent[waiting[0]] = true
			stream.Send(&pb.ExplainStreamRequest{Message: &pb.ExplainStreamRequest_Frame{Frame: frame}})
		}
		if len(sent)+len(waiting) == 0 {
			stream.CloseSend()
		}
	}
}
