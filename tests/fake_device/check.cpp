// Runs the checks of the fake device; `check race` lets two streams race and nothing else.
#include "check.h"

#include "fake_device.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include <sys/wait.h>
#include <unistd.h>

namespace check {
namespace {

int failed = 0, passed = 0;

struct Death {
  int signal;
  std::string said;
};

// How a child ends that runs `body`. No threads but the caller's exist in it.
Death end_of(const std::function<void()>& body) {
  int pipes[2];
  that(pipe(pipes) == 0, "pipe failed");
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipes[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(pipes[1]);
  Death death{};
  char text[512];
  for (ssize_t count; (count = read(pipes[0], text, sizeof text)) > 0;)
    death.said.append(text, static_cast<size_t>(count));
  close(pipes[0]);
  int status = 0;
  waitpid(child, &status, 0);
  death.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  return death;
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

std::string recorded() {
  std::string text(1 << 16, '\0');
  fake_cuda_violations(text.data(), text.size());
  return text.c_str();
}

// Without an event between the streams, the second may read before the first has written.
void race() {
  const Stream first, second;
  const at::Tensor x = first.within([] { return at::zeros({100}, at::TensorOptions(FAKE)); });
  second.within([&] { return at::relu(x); });
}

void a_violation_ends_a_strict_process_and_is_in_its_report() {
  const std::string report = std::string(std::getenv("TMPDIR") == nullptr ? "/tmp" : std::getenv("TMPDIR")) +
                             "/fake-cuda-" + std::to_string(getpid()) + ".json";
  const Death death = end_of([&] {
    setenv("FAKE_CUDA_STRICT", "1", 1);
    setenv("FAKE_CUDA_REPORT", report.c_str(), 1);
    execl("/proc/self/exe", "check", "race", nullptr);
  });
  std::ifstream file(report);
  std::stringstream text;
  text << file.rdbuf();
  std::remove(report.c_str());
  that(death.signal == SIGABRT, "the process ended with signal " + std::to_string(death.signal));
  that(death.said.find("read-after-write") != std::string::npos, "it said: " + death.said);
  that(text.str().find("\"violations\": [\"aten::relu reads") != std::string::npos, "the report: " + text.str());
  that(text.str().find("\"kernels\": 1,") != std::string::npos, "the report: " + text.str());
}

}  // namespace

void that(bool is_true, const std::string& what) {
  if (!is_true) throw std::runtime_error(what);
}

void is_equal(const at::Tensor& got, const at::Tensor& wanted, const std::string& what) {
  that(at::equal(got.is_cuda() ? got.cpu() : got, wanted), what + " has other elements");
}

void run(const std::string& name, const std::function<void()>& body) {
  std::string message = message_of(body);
  // What one check leaves behind is no race with the next one.
  for (const int device : {0, 1}) call(table().device_synchronize, device);
  const std::string left = recorded();
  fake_cuda_forget_violations();
  if (message.empty() && !left.empty()) message = "violations: " + left;
  (message.empty() ? passed : failed)++;
  if (!message.empty()) std::cout << "FAILED " << name << ": " << message.substr(0, 600) << std::endl;
}

int failures() { return failed; }

void fails(const std::string& text, const std::function<void()>& body) {
  const std::string message = message_of(body);
  that(message.find(text) != std::string::npos,
       message.empty() ? "no error, but \"" + text + "\" was expected" : "another error: " + message);
}

void violates(const std::string& text, const std::function<void()>& body) {
  fails(text, body);
  that(violations(text) == 1, "the error is not recorded as a violation");
}

size_t violations(const std::string& text) {
  std::istringstream all(recorded());
  fake_cuda_forget_violations();
  size_t count = 0;
  for (std::string one; std::getline(all, one); ++count)
    that(one.find(text) != std::string::npos, "another violation: " + one);
  return count;
}

void dies(const std::string& text, const std::function<void()>& body) {
  const Death death = end_of(body);
  that(death.signal == SIGSEGV, "the process ended with signal " + std::to_string(death.signal));
  that(death.said.find(text) != std::string::npos, "it said: " + death.said);
}

void lives(const std::function<void()>& body) {
  const Death death = end_of(body);
  that(death.signal == 0, "the process ended with signal " + std::to_string(death.signal) + ": " + death.said);
}

const struct camlens_cuda_bridge& table() {
  static const auto* const one = camlens_cuda_bridge(CAMLENS_CUDA_VERSION);
  return *one;
}

void order(const Stream& first, const Stream& second) {
  const Event event;
  event.record(first);
  event.block(second);
}

at::Tensor pinned(int64_t floats) {
  at::Tensor* bytes = nullptr;
  call(table().pinned_new, floats * 4, &bytes);
  const at::Tensor result = bytes->view(at::kFloat);
  delete bytes;
  return result;
}

camlens_cuda_counts counts() {
  camlens_cuda_counts counts;
  table().counts(&counts);
  return counts;
}

camlens_cuda_memory memory() {
  camlens_cuda_memory memory;
  call(table().memory_read, 0, &memory);
  return memory;
}

}  // namespace check

int main(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  if (argc > 1 && std::strcmp(argv[1], "race") == 0) {
    check::race();
    return 0;
  }
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
  check::operators();
  check::memory_and_devices();
  check::ordering();
  check::lifetimes();
  check::graphs();
  check::run("a violation ends a strict process, and is in its report",
             check::a_violation_ends_a_strict_process_and_is_in_its_report);
  std::cout << check::passed << " checks passed, " << check::failed << " failed" << std::endl;
  return check::failed != 0;
}
