#include "kernels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "geometry.cuh"

namespace camlens::cuda {

namespace {

// Operands of the elementwise kernels, at most.
constexpr size_t MOST_TERMS = 4;

// Blocks of a launch, at most: threads go on with what is left.
constexpr int64_t MOST_BLOCKS = 1 << 16;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// A function's tensors, by the function's name and theirs.
class Checks {
 public:
  Checks(const Launcher& launcher, const char* function) : type_(launcher.device_type()), function_(function) {}

  // Refuses a tensor that is not on the device of the tensors before it, or that has no strides.
  void take(const char* name, const at::Tensor& tensor) {
    if (!tensor.defined()) refuse(function_, ": ", name, " is undefined");
    if (tensor.layout() != c10::kStrided) refuse(function_, ": ", name, " is not a strided tensor");
    if (tensor.device().type() != type_) {
      refuse(function_, ": ", name, " is on ", tensor.device(), ", not on a device of type ",
             c10::DeviceTypeName(type_, true));
    }
    if (!device_) device_ = tensor.device();
    if (tensor.device() != *device_) {
      refuse(function_, ": ", name, " is on ", tensor.device(), ", other tensors are on ", *device_);
    }
  }

  void has_dimensions(const char* name, const at::Tensor& tensor, int64_t count, const char* shape) const {
    if (tensor.dim() != count) refuse(function_, ": ", name, " has the shape ", tensor.sizes(), ", not ", shape);
  }

  void has_sizes(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    if (tensor.sizes() != sizes) refuse(function_, ": ", name, " has the shape ", tensor.sizes(), ", not ", sizes);
  }

  void has_kind(const char* name, const at::Tensor& tensor, c10::ScalarType kind) const {
    if (tensor.scalar_type() != kind) {
      refuse(function_, ": ", name, " has the dtype ", tensor.scalar_type(), ", not ", kind);
    }
  }

  Element element(const char* name, c10::ScalarType kind) const {
    switch (kind) {
      case c10::kFloat:
        return Element::FLOAT32;
      case c10::kHalf:
        return Element::FLOAT16;
      case c10::kBFloat16:
        return Element::BFLOAT16;
      default:
        refuse(function_, ": ", name, " has the dtype ", kind, ", not Float, Half or BFloat16");
    }
  }

  const char* function() const { return function_; }

 private:
  c10::DeviceType type_;
  const char* function_;
  std::optional<c10::Device> device_;
};

// Whether tensors of one shape have each element at the same offset.
bool have_same_layout(const at::Tensor& left, const at::Tensor& right) {
  for (int64_t i = 0; i < left.dim(); ++i) {
    if (left.size(i) != 1 && left.stride(i) != right.stride(i)) return false;
  }
  return true;
}

// The tensor, or a dense copy of it.
at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous(tensor.suggest_memory_format());
}

// The tensor, or a copy of it with the layout of `model`, which is dense.
at::Tensor with_layout_of(const at::Tensor& model, const at::Tensor& tensor) {
  return have_same_layout(model, tensor) ? tensor : at::empty_like(model).copy_(tensor);
}

int64_t ceil_divided(int64_t count, int64_t by) { return count / by + (count % by != 0); }

// One thread for each of `work`, up to MOST_BLOCKS blocks.
Geometry threads_for(int64_t work) {
  return {static_cast<uint32_t>(std::clamp<int64_t>(ceil_divided(work, BLOCK), 1, MOST_BLOCKS)), BLOCK, 0};
}

// For `count` elements of tensors of one layout.
Geometry packs_for(const at::Tensor& tensor) {
  return threads_for(ceil_divided(tensor.numel(), PACK_BYTES / tensor.element_size()));
}

// The operands of `gate` and `sum` after their checks: MOST_TERMS arguments, the last ones null.
std::vector<Argument> terms_with_layout_of(const at::Tensor& model, const at::Tensor* const* terms, size_t count) {
  std::vector<Argument> arguments;
  for (size_t i = 0; i < MOST_TERMS; ++i) {
    arguments.push_back(i < count ? Argument::read(with_layout_of(model, *terms[i])) : Argument::none());
  }
  return arguments;
}

void check_terms(Checks& checks, const char* name, const at::Tensor* const* terms, size_t count, size_t least) {
  if (count < least || count > MOST_TERMS) {
    refuse(checks.function(), ": ", count, " ", name, ", not ", least, " to ", MOST_TERMS);
  }
  for (size_t i = 0; i < count; ++i) {
    checks.take(name, *terms[i]);
    checks.has_sizes(name, *terms[i], terms[0]->sizes());
    checks.has_kind(name, *terms[i], terms[0]->scalar_type());
  }
}

// Images whose pixels are equally spaced.
struct Images {
  at::Tensor tensor;
  int64_t row_stride, channel_stride, pixel_stride;
};

// Copies what has no such strides.
Images images(const at::Tensor& tensor) {
  const int64_t height = tensor.size(2), width = tensor.size(3);
  const auto with_pixel_stride = [](const at::Tensor& tensor, int64_t stride) {
    return Images{tensor, tensor.stride(0), tensor.stride(1), stride};
  };
  if (height == 1 || tensor.stride(2) == width * tensor.stride(3)) return with_pixel_stride(tensor, tensor.stride(3));
  if (width == 1) return with_pixel_stride(tensor, tensor.stride(2));
  return with_pixel_stride(tensor.contiguous(), 1);
}

// For `count` sums of `terms` terms in each of `rows` rows. The number of partial sums does not depend on the rows.
Geometry tiles_for(int64_t rows, int64_t count, int64_t terms) {
  uint32_t parts = CAM_LEAST_PARTS;
  while (parts < CAM_MOST_PARTS && static_cast<int64_t>(parts) * 16 < terms) parts *= 2;
  const int64_t tiles = rows * ceil_divided(count, CAM_TILE);
  return {static_cast<uint32_t>(std::min(tiles, MOST_BLOCKS)), parts * CAM_TILE,
          parts * CAM_ROW * static_cast<uint32_t>(sizeof(float))};
}

float scale(int64_t size, int64_t resized) { return static_cast<float>(size) / static_cast<float>(resized); }

}  // namespace

at::Tensor gate(Launcher& launcher, const at::Tensor* const* gradients, size_t count, const at::Tensor& source,
                double low, double high, bool guided) {
  Checks checks(launcher, "gate");
  check_terms(checks, "gradients", gradients, count, 1);
  checks.take("source", source);
  checks.has_sizes("source", source, gradients[0]->sizes());
  checks.has_kind("source", source, gradients[0]->scalar_type());
  const Element element = checks.element("source", source.scalar_type());
  const at::Tensor model = dense(source);
  const at::Tensor result = at::empty_like(model);
  if (result.numel() == 0) return result;
  std::vector<Argument> arguments = terms_with_layout_of(model, gradients, count);
  arguments.insert(arguments.end(), {Argument::read(model), Argument::written(result), Argument::of(result.numel()),
                                     Argument::of(static_cast<float>(low)), Argument::of(static_cast<float>(high)),
                                     Argument::of(guided ? 0.0f : -std::numeric_limits<float>::infinity())});
  launcher.launch(Kernel::GATE, element, packs_for(result), arguments);
  return result;
}

at::Tensor sum(Launcher& launcher, const at::Tensor* const* terms, size_t count) {
  Checks checks(launcher, "sum");
  check_terms(checks, "terms", terms, count, 2);
  const Element element = checks.element("terms", terms[0]->scalar_type());
  const auto found =
      std::find_if(terms, terms + count, [](const at::Tensor* term) { return term->is_non_overlapping_and_dense(); });
  const at::Tensor model = dense(found == terms + count ? *terms[0] : **found);
  const at::Tensor result = at::empty_like(model);
  if (result.numel() == 0) return result;
  std::vector<Argument> arguments = terms_with_layout_of(model, terms, count);
  arguments.insert(arguments.end(), {Argument::written(result), Argument::of(result.numel())});
  launcher.launch(Kernel::SUM, element, packs_for(result), arguments);
  return result;
}

void epilogue(Launcher& launcher, const at::Tensor& value, const at::Tensor* bias, const at::Tensor* other, double low,
              double high) {
  Checks checks(launcher, "epilogue");
  checks.take("value", value);
  if (value.dim() != 2) checks.has_dimensions("value", value, 4, "[N, C, H, W] or [N, C]");
  const Element element = checks.element("value", value.scalar_type());
  const bool is_contiguous = value.is_contiguous();
  if (!is_contiguous && !(value.dim() == 4 && value.is_contiguous(c10::MemoryFormat::ChannelsLast))) {
    refuse("epilogue: value has the shape ", value.sizes(), " and the strides ", value.strides(),
           ", neither contiguous nor channels-last");
  }
  const int64_t channels = value.size(1), plane = value.dim() == 4 && is_contiguous ? value.size(2) * value.size(3) : 1;
  Argument biases = Argument::none(), others = Argument::none();
  if (bias != nullptr) {
    checks.take("bias", *bias);
    checks.has_sizes("bias", *bias, {channels});
    checks.has_kind("bias", *bias, value.scalar_type());
    biases = Argument::read(bias->contiguous());
  }
  if (other != nullptr) {
    checks.take("other", *other);
    checks.has_sizes("other", *other, value.sizes());
    checks.has_kind("other", *other, value.scalar_type());
    others = Argument::read(with_layout_of(value, *other));
  }
  if (value.numel() == 0) return;
  launcher.launch(Kernel::EPILOGUE, element, packs_for(value),
                  {Argument::updated(value), biases, others, Argument::of(value.numel()), Argument::of(channels),
                   Argument::of(plane), Argument::of(static_cast<float>(low)), Argument::of(static_cast<float>(high))});
}

at::Tensor grad_cam(Launcher& launcher, const at::Tensor& activations, const at::Tensor& gradients) {
  Checks checks(launcher, "grad_cam");
  checks.take("activations", activations);
  checks.has_dimensions("activations", activations, 4, "[N, K, h, w]");
  checks.take("gradients", gradients);
  checks.has_sizes("gradients", gradients, activations.sizes());
  checks.has_kind("gradients", gradients, activations.scalar_type());
  const Element element = checks.element("activations", activations.scalar_type());
  const int64_t rows = activations.size(0), channels = activations.size(1), height = activations.size(2),
                width = activations.size(3), pixels = height * width;
  const at::TensorOptions options = activations.options().dtype(c10::kFloat);
  const at::Tensor map = at::empty({rows, height, width}, options), weights = at::empty({rows, channels}, options);
  if (map.numel() == 0) return map;
  if (weights.numel() != 0) {
    const Images images_of = images(gradients);
    launcher.launch(Kernel::CAM_WEIGHTS, element, tiles_for(rows, channels, pixels),
                    {Argument::read(images_of.tensor), Argument::written(weights), Argument::of(rows),
                     Argument::of(channels), Argument::of(pixels), Argument::of(images_of.row_stride),
                     Argument::of(images_of.channel_stride), Argument::of(images_of.pixel_stride)});
  }
  const Images images_of = images(activations);
  launcher.launch(Kernel::CAM_MAP, element, tiles_for(rows, pixels, channels),
                  {Argument::read(images_of.tensor), Argument::read(weights), Argument::written(map),
                   Argument::of(rows), Argument::of(channels), Argument::of(pixels), Argument::of(images_of.row_stride),
                   Argument::of(images_of.channel_stride), Argument::of(images_of.pixel_stride)});
  return map;
}

Fused fuse(Launcher& launcher, const at::Tensor& guided, const at::Tensor& map, bool with_upsampled) {
  Checks checks(launcher, "fuse");
  checks.take("guided", guided);
  checks.has_dimensions("guided", guided, 4, "[N, C, H, W]");
  const Element element = checks.element("guided", guided.scalar_type());
  checks.take("map", map);
  checks.has_dimensions("map", map, 3, "[N, h, w]");
  checks.has_kind("map", map, c10::kFloat);
  const int64_t rows = guided.size(0), channels = guided.size(1), height = guided.size(2), width = guided.size(3);
  if (map.size(0) != rows) refuse("fuse: map has ", map.size(0), " rows, guided has ", rows);
  const at::TensorOptions options = guided.options().dtype(c10::kFloat);
  Fused result;
  result.fused = at::empty({rows, channels, height, width}, options);
  if (with_upsampled) result.upsampled = at::empty({rows, height, width}, options);
  if (rows * height * width == 0) return result;
  if (map.numel() == 0) refuse("fuse: map has the shape ", map.sizes(), " and no pixels to resize");
  const at::Tensor pixels = map.contiguous();
  launcher.launch(Kernel::FUSE, element, threads_for(rows * height * width),
                  {Argument::read(guided), Argument::read(pixels), Argument::written(result.fused),
                   with_upsampled ? Argument::written(result.upsampled) : Argument::none(), Argument::of(rows),
                   Argument::of(channels), Argument::of(height), Argument::of(width), Argument::of(guided.stride(0)),
                   Argument::of(guided.stride(1)), Argument::of(guided.stride(2)), Argument::of(guided.stride(3)),
                   Argument::of(map.size(1)), Argument::of(map.size(2)), Argument::of(scale(map.size(1), height)),
                   Argument::of(scale(map.size(2), width))});
  return result;
}

at::Tensor normalize(Launcher& launcher, const at::Tensor& bytes, const float* mean, const float* deviation,
                     c10::ScalarType kind, bool channels_last) {
  Checks checks(launcher, "normalize");
  checks.take("bytes", bytes);
  checks.has_dimensions("bytes", bytes, 4, "[N, H, W, C]");
  checks.has_kind("bytes", bytes, c10::kByte);
  const Element element = checks.element("the result", kind);
  const int64_t rows = bytes.size(0), height = bytes.size(1), width = bytes.size(2), channels = bytes.size(3);
  if (channels < 1 || channels > NORMALIZE_CHANNELS) {
    refuse("normalize: pictures have ", channels, " channels, not 1 to ", NORMALIZE_CHANNELS);
  }
  const at::Tensor result = at::empty({rows, channels, height, width}, bytes.options().dtype(kind),
                                      channels_last ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::Contiguous);
  if (result.numel() == 0) return result;
  std::vector<Argument> arguments = {
      Argument::read(bytes.contiguous()), Argument::written(result), Argument::of(rows),
      Argument::of(height * width),       Argument::of(channels),    Argument::of(static_cast<int64_t>(channels_last))};
  for (const float* numbers : {mean, deviation}) {
    for (int64_t c = 0; c < NORMALIZE_CHANNELS; ++c)
      arguments.push_back(Argument::of(c < channels ? numbers[c] : 1.0f));
  }
  const int64_t tiles = rows * ceil_divided(height * width, int64_t{BLOCK} * NORMALIZE_PIXELS);
  const Geometry geometry = {static_cast<uint32_t>(std::min(tiles, MOST_BLOCKS)), BLOCK,
                             static_cast<uint32_t>(channels * BYTE_VALUES * sizeof(float))};
  launcher.launch(Kernel::NORMALIZE, element, geometry, arguments);
  return result;
}

}  // namespace camlens::cuda
