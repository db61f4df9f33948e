// The state of the stream, and one connection of it.
#pragma once
#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "camlens/v1/explain.grpc.pb.h"

namespace fs = std::filesystem;
namespace pb = camlens::v1;

extern std::vector<fs::path> files;             // a frame's sequence is its file's index + 1
extern std::set<uint64_t> waiting, sent;        // frames to send; frames in flight: sent on this connection, not ended
extern std::map<std::string, uint64_t> counts;  // how frames ended

std::string setting(const char* name);       // an environment variable; empty: it is not set
std::string contents(const fs::path& path);  // the bytes of a file
grpc::Status converse(pb::ExplainService::Stub& stub, grpc::ClientContext& context, const fs::path& out);
