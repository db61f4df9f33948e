#include "launcher.h"

namespace camlens::cuda {

namespace {

const void* address(const Argument& argument) {
  if (!argument.tensor.defined()) return nullptr;
  return argument.access == Access::READ ? argument.tensor.const_data_ptr() : argument.tensor.mutable_data_ptr();
}

}  // namespace

PackedArguments::PackedArguments(const std::vector<Argument>& arguments) {
  values_.reserve(arguments.size());
  for (const Argument& argument : arguments) {
    Value value;
    switch (argument.kind) {
      case Parameter::POINTER:
        value.pointer = address(argument);
        break;
      case Parameter::INT64:
        value.integer = argument.integer;
        break;
      case Parameter::FLOAT32:
        value.number = argument.number;
        break;
    }
    values_.push_back(value);
  }
  pointers_.reserve(values_.size());
  for (Value& value : values_) pointers_.push_back(&value);
}

}  // namespace camlens::cuda
