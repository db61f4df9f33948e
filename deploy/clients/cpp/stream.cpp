// Streams a folder of pictures to camlens and writes an overlay of each: the conversation. ../README.md explains it.
#include "stream.h"

#include <fstream>
#include <iostream>
#include <sstream>

std::vector<fs::path> files;
std::set<uint64_t> waiting, sent;
std::map<std::string, uint64_t> counts;

std::string contents(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// Ends up to `count` frames in flight, from `first` to `last`.
void end(const char* how, uint64_t first, uint64_t last, uint64_t count) {
  for (auto at = sent.lower_bound(first); at != sent.end() && *at <= last && count > 0; count--, counts[how]++)
    at = sent.erase(at);
}

// Holds one stream, from Open to its status: sends within the credit and reads how each frame ends.
grpc::Status converse(pb::ExplainService::Stub& stub, grpc::ClientContext& context, const fs::path& out) {
  auto stream = stub.ExplainStream(&context);
  pb::ExplainStreamRequest open;
  auto overflow = pb::StreamPolicy::OVERFLOW_BLOCK;  // or OVERFLOW_LATEST, for cameras
  pb::StreamPolicy::Overflow_Parse("OVERFLOW_" + setting("CAMLENS_OVERFLOW"), &overflow);
  open.mutable_open()->mutable_policy()->set_overflow(overflow);
  auto* picture = open.mutable_open()->mutable_options()->add_pictures();
  picture->set_picture(pb::PICTURE_OVERLAY);
  picture->set_format(pb::IMAGE_FORMAT_PNG);
  stream->Write(open);
  uint64_t credit = 0, accepted = files.size();  // without GoingAway any frame that was sent may have been accepted
  pb::ExplainStreamResponse response;
  while (stream->Read(&response)) {
    if (response.has_opened()) {
      credit = response.opened().max_in_flight();
      counts["connections"]++;
    } else if (response.has_explanation()) {
      const auto& explanation = response.explanation();
      auto name = out / (files[explanation.sequence() - 1].filename().string() + ".png");
      std::ofstream(name, std::ios::binary) << explanation.targets(0).pictures(0).data();
      end("explained", explanation.sequence(), explanation.sequence(), 1);
    } else if (response.has_dropped()) {
      const auto& run = response.dropped();
      end("dropped", run.first_sequence(), run.last_sequence(), run.count());
    } else if (response.has_frame_error()) {
      std::cerr << response.frame_error().message() << "\n";
      end("failed", response.frame_error().sequence(), response.frame_error().sequence(), 1);
    } else if (response.has_going_away()) {
      credit = 0;
      accepted = response.going_away().last_accepted_sequence();  // 0: no frame was accepted
    }
    while (sent.size() < credit && !waiting.empty()) {
      uint64_t sequence = *waiting.begin();
      pb::ExplainStreamRequest frame;
      frame.mutable_frame()->set_sequence(sequence);
      frame.mutable_frame()->mutable_encoded()->set_data(contents(files[sequence - 1]));
      sent.insert(waiting.extract(waiting.begin()));
      stream->Write(frame);
    }
    if (sent.empty() && waiting.empty()) stream->WritesDone();
  }
  waiting.insert(sent.upper_bound(accepted), sent.end());
  sent.erase(sent.upper_bound(accepted), sent.end());
  end("lost", 1, accepted, accepted);  // or send them again, where explaining one twice does no harm
  return stream->Finish();
}
