// Words come again and again; their ids are kept up to a bound.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace weft {

// Thread-safe: each thread group of pieces, chosen by hash, has its own lock.
class PieceCache {
 public:
  // Appends what is kept for `piece` to `ids`; false when nothing is.
  bool find(const std::string& piece, std::vector<int64_t>& ids) const {
    if (piece.size() > kBytes) return false;
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    const auto found = shard.ids.find(piece);
    if (found == shard.ids.end()) return false;
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }

  void keep(const std::string& piece, const std::vector<int32_t>& ids) const {
    if (piece.size() > kBytes) return;
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    if (shard.ids.size() < kPieces) shard.ids.emplace(piece, ids);
  }

 private:
  static constexpr size_t kShards = 16, kBytes = 64, kPieces = 4096;
  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>> ids;
  };
  Shard& shard_of(const std::string& piece) const {
    return shards_[(static_cast<unsigned char>(piece.back()) * 31u +
                    static_cast<unsigned char>(piece[piece.size() / 2]) * 7u + piece.size()) %
                   kShards];
  }
  mutable Shard shards_[kShards];
};

}  // namespace weft
