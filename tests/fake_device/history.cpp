#include "history.h"

#include <algorithm>
#include <mutex>
#include <unordered_set>

namespace fake {
namespace {

// The number of accesses kept for each block. Beyond it, accesses that no later one can race with are dropped.
constexpr size_t MANY = 32;

bool contains(const Access& outer, const Access& inner) { return outer.begin <= inner.begin && inner.end <= outer.end; }

}  // namespace

const std::string* interned(const std::string& text) {
  static std::mutex& lock = *new std::mutex;
  static std::unordered_set<std::string>& all = *new std::unordered_set<std::string>;
  const std::lock_guard<std::mutex> hold(lock);
  return &*all.insert(text).first;
}

const Access* History::race(const Access& next, const Clock& known) const {
  for (const Access& last : accesses_) {
    const bool is_same_place = last.begin < next.end && next.begin < last.end;
    if (is_same_place && (last.is_write || next.is_write) && !known.covers(last.stream, last.step)) return &last;
  }
  return nullptr;
}

void History::add(const Access& access, const Clock& over) {
  const auto drop = [this](auto is_dropped) {
    accesses_.erase(std::remove_if(accesses_.begin(), accesses_.end(), is_dropped), accesses_.end());
  };
  // What races with an earlier access races with the one that took its place too.
  drop([&](const Access& last) {
    return contains(access, last) && (access.is_write || (!last.is_write && last.stream == access.stream));
  });
  if (accesses_.size() >= MANY) drop([&](const Access& last) { return over.covers(last.stream, last.step); });
  accesses_.push_back(access);
}

}  // namespace fake
