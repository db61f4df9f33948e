// streamfolder FOLDER OUT: the connection, and a new one while frames wait.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <random>
#include <thread>

#include "stream.h"

std::string setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// What a connection that broke is called, also by proxies: another try may succeed.
const std::set<grpc::StatusCode> may_pass{grpc::OK, grpc::UNAVAILABLE, grpc::INTERNAL, grpc::UNKNOWN, grpc::CANCELLED};

int main(int, char** argv) {
  for (const auto& entry : fs::directory_iterator(argv[1])) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (uint64_t sequence = 1; sequence <= files.size(); sequence++) waiting.insert(sequence);
  auto ca = setting("CAMLENS_TLS_CA"), token = setting("CAMLENS_TOKEN"), server = setting("CAMLENS_SERVER");
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // each channel has a connection of its own
  // gRPC would send the socket's path as the authority, which HTTP/2 forbids.
  if (server.rfind("unix:", 0) == 0) arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  auto credentials = ca.empty() ? grpc::InsecureChannelCredentials() : grpc::SslCredentials({contents(ca), "", ""});
  std::mt19937 random{std::random_device{}()};
  for (int tries = 0; !waiting.empty(); tries++) {
    auto before = waiting.size();
    auto stub = pb::ExplainService::NewStub(grpc::CreateCustomChannel(server, credentials, arguments));
    grpc::ClientContext context;
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    auto status = converse(*stub, context, argv[2]);
    if (may_pass.count(status.error_code()) == 0 || tries == 20) {
      std::cerr << status.error_code() << ": " << status.error_message() << "\n";
      return 1;  // the server's own word: another try would end in the same way
    }
    if (waiting.size() < before) tries = 0;
    // A random part of 0.1, 0.2, 0.4, … 5 s: clients of a server that restarts do not all come at once.
    std::uniform_real_distribution<double> wait(0, std::min(5.0, 0.1 * (1 << std::min(tries, 10))));
    if (!waiting.empty()) std::this_thread::sleep_for(std::chrono::duration<double>(wait(random)));
  }
  for (const auto& [how, count] : counts) std::cout << how << "=" << count << " ";
  std::cout << "\n";
}
