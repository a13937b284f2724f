// A WAV file as a stream of samples: nothing is held but the block that was asked for, so that a pipe will do.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

class WavStream {
 public:
  // 16-bit PCM, one channel, `rate` samples a second; "-" is standard input. weft::InputError names the file and what
  // it is instead.
  WavStream(const std::string& path, uint32_t rate);
  ~WavStream();
  WavStream(const WavStream&) = delete;
  WavStream& operator=(const WavStream&) = delete;

  // The next samples, -1 to 1; fewer than `block.size()` at the end, where the rest is 0. Returns how many there were.
  size_t read(std::vector<float>& block);

 private:
  void need(void* data, size_t bytes, const char* what);
  std::string path_;
  std::FILE* file_;
  uint64_t left_ = 0;  // samples
};
