// A recipe as a study: arms that are compared, seeds, sizes, and the claims that it is to check.
//
//   title: ...             one line                      system: folder name of the recipe
//   paper: ...             whose claims                  note: what differs from the paper
//   experiment: supervised what runs (experiment.h); left out: language (a text model), or supervised with data.task.
//                          An arm may give another one, and its data, with fields of their own
//   report: [accuracy]     metrics of the table of all arms
//   arms:                  {name: {field: value}}: changes to the configuration, dotted fields as in --set; a field
//                          without a value is taken away
//   seeds: [1, 2, 3]
//   sizes:                 {smoke: {...}, cpu: {...}, h100: {...}}: changes put on top of those of an arm; seeds and arms
//                          (a list of names) may be given as well
//   claims: [...]          see Claim
//   everything else        the configuration that the experiment reads
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/fields.h"

namespace weft {

struct Arm {
  std::string name;
  Node experiment;     // its name: that of the recipe unless the arm gives another
  Node configuration;  // with the changes of arm, size and --set
};

// "The metric of an arm, minus or over that of another, is at least (at most) so much."
struct Claim {
  std::string name, metric = "accuracy", arm, minus, over;
  std::string other;  // the metric of the other arm, or of the same one; empty: the same metric
  std::optional<double> at_least, at_most;
  std::string threshold = "ours";  // where the bound is from: ours, published
  std::string published;           // the published figure and where it stands; "" when there is none
  std::string judge = "mean";      // over seeds: mean, best, worst
  std::vector<std::string> sizes;  // judged at these only; empty: at all but smoke
};

struct Study {
  std::string path, folder;  // of the recipe
  std::string system, title, paper, note, size;
  std::vector<std::string> report;
  std::vector<Arm> arms;
  std::vector<int64_t> seeds;
  std::vector<Claim> claims;
};

// `path`: a recipe file, a folder with a recipe.yaml, or the name of a folder in ./recipes. InputError for a size that the
// recipe does not have, claims about arms that do not exist, and the like.
Study load_study(const std::string& path, const std::string& size, const std::vector<std::string>& sets = {});

// Sizes of a recipe file, in its order; "cpu" when it names none.
std::vector<std::string> study_sizes(const std::string& path);

// Recipe files below a folder, sorted: FOLDER/NAME/recipe.yaml.
std::vector<std::string> find_studies(const std::string& folder);

}  // namespace weft
