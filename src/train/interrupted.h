// Thrown inside long work (learning a vocabulary, tokenizing, validating) when TrainerOptions::stop says so.
// Never leaves a Trainer.
#pragma once

#include <exception>

namespace weft {

struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

}  // namespace weft
