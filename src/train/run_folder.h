// The folder of a run:
//   recipe.yaml    the resolved configuration       log.jsonl     one line for each logged step
//   data/          see corpus.h                     tensorboard/  event files
//   checkpoints/   step-00000200/, ...              model/        the final model
//   curve.svg      the loss curve                   lock          held while a run writes here
#pragma once

#include <string>

namespace weft {

// Makes the folder and holds its lock, so that two runs cannot write to it at once; the system releases the
// lock of a killed process.
class RunFolder {
 public:
  // InputError when another process holds it. Removes what killed runs left half written.
  explicit RunFolder(const std::string& path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  // Removes the folder with all that is in it, and parents made with it that are empty; does nothing when it
  // was there before this object.
  void discard();

 private:
  std::string path_;
  int created_ = 0;  // folders of path_, from its end, that were not there before
  int lock_ = -1;
};

}  // namespace weft
