#include "ops/devices.h"

#include "cli/command.h"
#include "cli/output.h"

namespace weft::cli {
namespace {

struct NoFlags {
  void flags(Flags&) {}
};

int show_devices(const NoFlags&, const Session&) {
  write_output(devices_report());
  return 0;
}
const Command register_devices{"devices", "what this machine can compute on", show_devices};

int show_version(const NoFlags&, const Session&) {
  write_output(version_report());
  return 0;
}
const Command register_version{"version", "weft, its compiler and its libtorch", show_version};

}  // namespace
}  // namespace weft::cli
