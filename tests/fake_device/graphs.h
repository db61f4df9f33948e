// Graphs: work that is recorded once and launched as a whole.
//
// While a stream is captured its work does run once, because the shapes of results must be known. What it has written
// to memory that was there before is put back at the end, and its own memory counts as not written until a launch.
#pragma once
#include "work.h"

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace fake {

// Memory for graphs that never run at the same time.
struct Pool {
  explicit Pool(int of_device);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  int device;
  uint64_t number;
  // The graph that was launched last, 0 if none was, and what happens before its end.
  uint64_t last_graph = 0;
  Clock last_end;
};

class Graph {
 public:
  explicit Graph(std::shared_ptr<Pool> pool);

  // Runs what is recorded, on what memory and events hold now.
  void launch(Stream& stream);

 private:
  friend class Capture;

  enum class Step { WORK, RECORD, BLOCK };
  struct Node {
    Step step;
    // Of the capture's streams, and of its events.
    size_t branch, slot;
    Work work;
  };

  void begin(Stream& stream);

  std::shared_ptr<Pool> pool_;
  uint64_t number_;
  std::vector<Node> nodes_;
  // For the capture's streams but the first one, whose place the stream of the launch takes.
  std::vector<Stream*> branches_;
  std::mutex launching_;
};

class Capture {
 public:
  // From now on the stream's work is recorded.
  Capture(std::shared_ptr<Pool> pool, Stream& stream);
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture();

  // Ends it. Throws if something that cannot be recorded has been asked for meanwhile.
  std::shared_ptr<Graph> end();

  uint64_t number() const { return number_; }
  uint64_t pool() const { return pool_->number; }
  int device() const { return pool_->device; }

  // These want the lock of host.h held.
  //
  // Throws if the capture is invalid; remembers what will be overwritten.
  void begin_work(const std::vector<Use>& uses);
  void add(const Stream& stream, Work work);
  void record(Event& event, const Stream& stream);
  // The stream becomes part of the capture, if it is not.
  void block(const Event& event, Stream& stream);
  // Makes the capture invalid, and throws.
  [[noreturn]] void refuse(const std::string& what);

 private:
  void join(Stream& stream);
  // Nothing is recorded any more, and memory is as it was before.
  void leave();

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Graph> graph_;
  std::thread::id owner_;
  uint64_t number_;
  // Memory of earlier generations was there before.
  uint64_t first_generation_;
  std::string problem_;
  std::vector<Stream*> streams_;
  // Of each stream, and of each event, by branches.
  std::vector<Clock> clocks_, events_;
  std::map<BlockPointer, std::vector<char>> undo_;
  bool is_over_ = false;
};

// Throws, and makes the capture invalid, if the calling thread captures or `stream` is captured.
void refuse_in_capture(const std::string& what, const Stream* stream = nullptr);
// The same for every capture of the device.
void refuse_in_captures_of(int device, const std::string& what);
// With the lock of host.h held: the capture, null if it has ended; and that of the calling thread.
Capture* capture_of(uint64_t number);
Capture* own_capture();

}  // namespace fake
