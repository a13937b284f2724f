// TensorBoard event files: a sequence of records (the TFRecord framing: length, masked CRC-32C of the length,
// bytes, masked CRC-32C of the bytes), each an Event message of TensorFlow's event.proto. Only scalars are
// written.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

class EventFile {
 public:
  // Creates a new file in `folder`. `first_step` above 0 tells TensorBoard to forget what earlier files of
  // the folder hold from that step on: a run that was resumed.
  EventFile(const std::string& folder, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // Written through at once. InputError when the disk is full.
  void scalar(const std::string& tag, int64_t step, double value);
  const std::string& path() const { return path_; }

 private:
  void write_record(std::string_view event);
  std::string path_;
  int fd_ = -1;
};

}  // namespace weft
