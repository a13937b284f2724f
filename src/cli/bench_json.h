// What `weft bench --json` writes. Rows of `bench ops` are one list, each with the facts about its machine and run, so
// that lists of several runs can be put together; tools/performance_page.py makes a page of them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "bench/busy.h"
#include "bench/first_call.h"
#include "bench/machine.h"
#include "bench/mixers.h"
#include "bench/model.h"
#include "bench/ops.h"

namespace weft::cli {

nlohmann::json json_of(const bench::Machine& machine);
nlohmann::json json_of(const bench::Row& row, const nlohmann::json& machine);
nlohmann::json json_of(const bench::BusyRow& row, size_t competitors, const nlohmann::json& machine);
nlohmann::json json_of(const bench::OpCase& subject, const bench::FirstCall& call,
                       const nlohmann::json& machine);
nlohmann::json json_of(const bench::MixerRow& row, const nlohmann::json& machine);
nlohmann::json json_of(const bench::ModelRow& row);

}  // namespace weft::cli
