#include "base/integer_constraints.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace weft {
namespace {

using Kind = IntegerTerm::Kind;
using Ranges = std::vector<IntegerRange>;  // one for each variable

IntegerTerm composed(Kind kind, const IntegerTerm& a, const IntegerTerm& b) {
  return IntegerTerm(std::make_shared<const IntegerTerm::Node>(
      IntegerTerm::Node{.kind = kind,
                        .left = std::make_shared<const IntegerTerm::Node>(a.node()),
                        .right = std::make_shared<const IntegerTerm::Node>(b.node())}));
}

// What a term can be, given its variables.
IntegerRange term_range(const IntegerTerm::Node& term, const Ranges& ranges) {
  switch (term.kind) {
    case Kind::constant:
      return range_of({term.number});
    case Kind::variable:
      return ranges[static_cast<size_t>(term.number)];
    case Kind::sum:
      return sum_range(term_range(*term.left, ranges), term_range(*term.right, ranges));
    case Kind::product:
      return product_range(term_range(*term.left, ranges), term_range(*term.right, ranges));
    case Kind::power:
      return power_range(term_range(*term.left, ranges), term.number);
  }
  return {};
}

// Takes from the variables what cannot make the term one of `wanted`. False when nothing is left of one.
bool narrow(const IntegerTerm::Node& term, const IntegerRange& wanted, Ranges& ranges) {
  if (wanted.empty()) return false;
  switch (term.kind) {
    case Kind::constant:
      return wanted.contains(term.number);
    case Kind::variable: {
      auto& range = ranges[static_cast<size_t>(term.number)];
      range = intersection(range, wanted);
      return !range.empty();
    }
    case Kind::power:
      return narrow(*term.left, bases(term_range(*term.left, ranges), term.number, wanted), ranges);
    case Kind::sum:
    case Kind::product: {
      const auto part = term.kind == Kind::sum ? addends : factors;
      return narrow(*term.left, part(term_range(*term.left, ranges), term_range(*term.right, ranges), wanted),
                    ranges) &&
             narrow(*term.right,
                    part(term_range(*term.right, ranges), term_range(*term.left, ranges), wanted), ranges);
    }
  }
  return false;
}

bool settle(const std::vector<IntegerConstraint>& constraints, Ranges& ranges);

bool narrow_any(const std::vector<IntegerConstraint>& parts, Ranges& ranges) {
  Ranges all(ranges.size(), range_of(1, 0));
  bool possible = false;
  for (const auto& part : parts) {
    auto branch = ranges;
    if (!settle({part}, branch)) continue;
    possible = true;
    for (size_t i = 0; i < all.size(); ++i) all[i] = hull(all[i], branch[i]);
  }
  if (possible)
    for (size_t i = 0; i < all.size(); ++i) ranges[i] = intersection(ranges[i], all[i]);
  return possible;
}

bool narrow(const IntegerConstraint& constraint, Ranges& ranges) {
  using Rule = IntegerConstraint::Kind;
  if (constraint.kind == Rule::all) {
    for (const auto& part : constraint.parts)
      if (!narrow(part, ranges)) return false;
    return true;
  }
  if (constraint.kind == Rule::any) return narrow_any(constraint.parts, ranges);
  const auto &a = constraint.terms[0].node(), &b = constraint.terms[1].node();
  const auto range_a = term_range(a, ranges), range_b = term_range(b, ranges);
  if (range_a.empty() || range_b.empty()) return false;
  switch (constraint.kind) {
    case Rule::equal: {
      const auto both = intersection(range_a, range_b);
      return narrow(a, both, ranges) && narrow(b, both, ranges);
    }
    case Rule::at_most:
      return narrow(a, intersection(range_a, range_of(1, range_b.upper)), ranges) &&
             narrow(b, intersection(range_b, range_of(range_a.lower, kLargestTerm)), ranges);
    default:
      return narrow(a, multiples(range_a, range_b), ranges) && narrow(b, divisors(range_b, range_a), ranges);
  }
}

// Narrows until nothing changes; a bound may creep by one in a round, hence the limit.
bool settle(const std::vector<IntegerConstraint>& constraints, Ranges& ranges) {
  for (int round = 0; round < 200; ++round) {
    const auto before = ranges;
    for (const auto& constraint : constraints)
      if (!narrow(constraint, ranges)) return false;
    if (ranges == before) return true;
  }
  return true;
}

int64_t term_value(const IntegerTerm::Node& term, const std::vector<int64_t>& values) {
  switch (term.kind) {
    case Kind::constant:
      return term.number;
    case Kind::variable:
      return values[static_cast<size_t>(term.number)];
    case Kind::sum:
      return std::min(term_value(*term.left, values) + term_value(*term.right, values), kLargestTerm + 1);
    case Kind::product:
      return capped_product(term_value(*term.left, values), term_value(*term.right, values));
    case Kind::power:
      return capped_power(term_value(*term.left, values), term.number);
  }
  return 0;
}

bool satisfied(const IntegerConstraint& constraint, const std::vector<int64_t>& values) {
  using Rule = IntegerConstraint::Kind;
  const auto holds = [&](const IntegerConstraint& part) { return satisfied(part, values); };
  if (constraint.kind == Rule::all)
    return std::all_of(constraint.parts.begin(), constraint.parts.end(), holds);
  if (constraint.kind == Rule::any)
    return std::any_of(constraint.parts.begin(), constraint.parts.end(), holds);
  const int64_t a = term_value(constraint.terms[0].node(), values);
  const int64_t b = term_value(constraint.terms[1].node(), values);
  if (a > kLargestTerm || b > kLargestTerm) return false;
  if (constraint.kind == Rule::equal) return a == b;
  return constraint.kind == Rule::at_most ? a <= b : a % b == 0;
}

int64_t term_size(const IntegerTerm::Node& term) {
  return 1 + (term.left ? term_size(*term.left) : 0) + (term.right ? term_size(*term.right) : 0);
}
int64_t constraint_size(const IntegerConstraint& constraint) {
  int64_t size = 0;
  for (const auto& term : constraint.terms) size += term_size(term.node());
  for (const auto& part : constraint.parts) size += constraint_size(part);
  return size;
}

bool has_only(int64_t value, const std::vector<int64_t>& primes) {
  for (const int64_t prime : primes)
    while (value % prime == 0) value /= prime;
  return value == 1;
}

bool allowed(const IntegerVariable& variable, int64_t value) {
  return value >= variable.lower && value <= variable.upper && value % variable.factor == 0 &&
         (variable.values.empty() ||
          std::find(variable.values.begin(), variable.values.end(), value) != variable.values.end()) &&
         (variable.primes.empty() || has_only(value, variable.primes));
}

IntegerRange first_range(const IntegerVariable& variable) {
  auto range = range_of(variable.lower, variable.upper, variable.factor);
  if (!variable.values.empty()) range = intersection(range, range_of(variable.values));
  if (variable.primes.empty()) return range;
  std::vector<int64_t> smooth = {1};
  for (const int64_t prime : variable.primes)
    for (size_t i = 0; i < smooth.size(); ++i)
      if (capped_product(smooth[i], prime) <= range.upper) smooth.push_back(smooth[i] * prime);
  return intersection(range, range_of(std::move(smooth)));
}

// `range` cut in two halves, the lower one first.
std::pair<IntegerRange, IntegerRange> halves(const IntegerRange& range) {
  if (range.listed) {
    const auto middle = range.values.begin() + static_cast<int64_t>(range.values.size() / 2);
    return {range_of(std::vector<int64_t>(range.values.begin(), middle)),
            range_of(std::vector<int64_t>(middle, range.values.end()))};
  }
  const int64_t middle = range.lower + (range.upper - range.lower) / 2;
  return {range_of(range.lower, middle, range.factor), range_of(middle + 1, range.upper, range.factor)};
}

struct Decision {
  size_t variable;
  bool largest_first;
};

class Searcher {
 public:
  Searcher(const std::vector<IntegerVariable>& variables, const std::vector<IntegerConstraint>& constraints,
           std::vector<Decision> decisions, size_t chosen, const IntegerProblem::Search& search)
      : variables_(variables),
        constraints_(constraints),
        decisions_(std::move(decisions)),
        chosen_(chosen),
        search_(search) {
    for (const auto& assignment : search.excluded) excluded_.insert(key_of(assignment));
  }

  void run(Ranges ranges) { decide(std::move(ranges), 0); }
  std::vector<IntegerAssignment> found;

 private:
  std::vector<int64_t> key_of(const IntegerAssignment& assignment) const {
    std::vector<int64_t> key;
    for (size_t i = 0; i < chosen_; ++i) {
      const auto& name = variables_[decisions_[i].variable].name;
      const auto value = assignment.find(name);
      require(value != assignment.end(), "integer problem: an excluded assignment lacks {}", name);
      key.push_back(value->second);
    }
    return key;
  }

  // Goes on with the first variable from `next` that is not decided. True: enough has been found, or, beyond the choices,
  // one solution.
  bool decide(Ranges ranges, size_t next) {
    supported(++steps_ <= search_.most_steps,
              "integer problem: no answer within {} steps; give tighter bounds or value sets",
              search_.most_steps);
    if (!settle(constraints_, ranges)) return false;
    while (next < decisions_.size() && ranges[decisions_[next].variable].single()) {
      const auto [variable, order] = decisions_[next++];
      if (!allowed(variables_[variable], ranges[variable].lower)) return false;
      if (next == chosen_) return choices_made(std::move(ranges));
    }
    if (next == decisions_.size()) return complete(ranges);
    const auto [variable, largest_first] = decisions_[next];
    auto [first, second] = halves(ranges[variable]);
    if (largest_first) std::swap(first, second);
    for (auto* half : {&first, &second}) {
      if (half->empty()) continue;
      auto branch = ranges;
      branch[variable] = std::move(*half);
      if (decide(std::move(branch), next)) return true;
    }
    return false;
  }

  // All choices are decided; the rest needs one solution only.
  bool choices_made(Ranges ranges) {
    std::vector<int64_t> key;
    for (size_t i = 0; i < chosen_; ++i) key.push_back(ranges[decisions_[i].variable].lower);
    if (excluded_.count(key)) return false;
    if (!(chosen_ == decisions_.size() ? complete(ranges) : decide(std::move(ranges), chosen_))) return false;
    return search_.count > 0 && static_cast<int64_t>(found.size()) >= search_.count;
  }

  bool complete(const Ranges& ranges) {
    std::vector<int64_t> values;
    for (const auto& range : ranges) values.push_back(range.lower);
    for (const auto& constraint : constraints_)
      if (!satisfied(constraint, values)) return false;
    IntegerAssignment assignment;
    for (size_t i = 0; i < values.size(); ++i) assignment[variables_[i].name] = values[i];
    found.push_back(std::move(assignment));
    return true;
  }

  const std::vector<IntegerVariable>& variables_;
  const std::vector<IntegerConstraint>& constraints_;
  const std::vector<Decision> decisions_;
  const size_t chosen_;
  const IntegerProblem::Search& search_;
  std::set<std::vector<int64_t>> excluded_;
  int64_t steps_ = 0;
};

}  // namespace

IntegerTerm::IntegerTerm(int64_t constant)
    : node_(std::make_shared<const Node>(Node{.kind = Kind::constant, .number = constant})) {
  require(constant >= 1 && constant <= kLargestTerm, "integer term: constant {}, expected 1 to {}", constant,
          kLargestTerm);
}

IntegerTerm operator+(const IntegerTerm& a, const IntegerTerm& b) { return composed(Kind::sum, a, b); }
IntegerTerm operator*(const IntegerTerm& a, const IntegerTerm& b) { return composed(Kind::product, a, b); }
IntegerTerm power(const IntegerTerm& base, int64_t exponent) {
  require(exponent >= 1, "integer term: exponent {}, expected at least 1", exponent);
  return IntegerTerm(std::make_shared<const IntegerTerm::Node>(
      IntegerTerm::Node{.kind = Kind::power,
                        .number = exponent,
                        .left = std::make_shared<const IntegerTerm::Node>(base.node()),
                        .right = nullptr}));
}

IntegerConstraint equal(IntegerTerm a, IntegerTerm b) {
  return {.kind = IntegerConstraint::Kind::equal, .terms = {std::move(a), std::move(b)}};
}
IntegerConstraint at_most(IntegerTerm a, IntegerTerm b) {
  return {.kind = IntegerConstraint::Kind::at_most, .terms = {std::move(a), std::move(b)}};
}
IntegerConstraint divisible(IntegerTerm a, IntegerTerm b) {
  return {.kind = IntegerConstraint::Kind::divisible, .terms = {std::move(a), std::move(b)}};
}
IntegerConstraint all_of(std::vector<IntegerConstraint> parts) {
  return {.kind = IntegerConstraint::Kind::all, .parts = std::move(parts)};
}
IntegerConstraint any_of(std::vector<IntegerConstraint> parts) {
  return {.kind = IntegerConstraint::Kind::any, .parts = std::move(parts)};
}

IntegerTerm IntegerProblem::add(const IntegerVariable& variable) {
  require(!variable.name.empty(), "integer problem: a variable without a name");
  for (const auto& other : variables_)
    require(other.name != variable.name, "integer problem: two variables are called {}", variable.name);
  require(variable.lower >= 1 && variable.upper <= kLargestTerm,
          "integer problem: {} is between {} and {}, expected bounds from 1 to {}", variable.name,
          variable.lower, variable.upper, kLargestTerm);
  require(variable.factor >= 1, "integer problem: {} has factor {}, expected at least 1", variable.name,
          variable.factor);
  for (const int64_t value : variable.values)
    require(value >= 1, "integer problem: {} may be {}, expected at least 1", variable.name, value);
  for (const int64_t prime : variable.primes)
    require(prime >= 2, "integer problem: {} may have prime factor {}, expected at least 2", variable.name,
            prime);
  variables_.push_back(variable);
  return IntegerTerm(std::make_shared<const IntegerTerm::Node>(
      IntegerTerm::Node{.kind = Kind::variable, .number = static_cast<int64_t>(variables_.size()) - 1}));
}

void IntegerProblem::constrain(IntegerConstraint constraint) {
  const auto place =
      std::upper_bound(constraints_.begin(), constraints_.end(), constraint,
                       [](const auto& a, const auto& b) { return constraint_size(a) < constraint_size(b); });
  constraints_.insert(place, std::move(constraint));
}

std::vector<IntegerAssignment> IntegerProblem::solve(const Search& search) const {
  std::vector<Decision> decisions;
  std::vector<bool> chosen(variables_.size());
  for (const auto& choice : search.choices) {
    const auto variable = std::find_if(variables_.begin(), variables_.end(),
                                       [&](const auto& v) { return v.name == choice.variable; });
    require(variable != variables_.end(), "integer problem: no variable is called {}", choice.variable);
    const auto place = static_cast<size_t>(variable - variables_.begin());
    require(!chosen[place], "integer problem: {} is chosen twice", choice.variable);
    chosen[place] = true;
    decisions.push_back({place, choice.order == Order::largest_first});
  }
  const size_t count = decisions.empty() ? variables_.size() : decisions.size();
  for (size_t i = 0; i < variables_.size(); ++i)
    if (!chosen[i]) decisions.push_back({i, false});
  Ranges ranges;
  for (const auto& variable : variables_) {
    ranges.push_back(first_range(variable));
    if (ranges.back().empty()) return {};
  }
  if (variables_.empty()) return {};
  Searcher searcher(variables_, constraints_, std::move(decisions), count, search);
  searcher.run(std::move(ranges));
  return std::move(searcher.found);
}

std::map<std::string, IntegerRange> IntegerProblem::propagate() const {
  Ranges ranges;
  for (const auto& variable : variables_) ranges.push_back(first_range(variable));
  const bool none =
      std::any_of(ranges.begin(), ranges.end(), [](const auto& range) { return range.empty(); });
  const bool possible = !none && settle(constraints_, ranges);
  std::map<std::string, IntegerRange> named;
  for (size_t i = 0; i < ranges.size(); ++i)
    named[variables_[i].name] = possible ? ranges[i] : range_of(1, 0);
  return named;
}

bool IntegerProblem::holds(const IntegerAssignment& assignment) const {
  std::vector<int64_t> values;
  for (const auto& variable : variables_) {
    const auto value = assignment.find(variable.name);
    require(value != assignment.end(), "integer problem: the assignment lacks {}", variable.name);
    if (!allowed(variable, value->second)) return false;
    values.push_back(value->second);
  }
  return std::all_of(constraints_.begin(), constraints_.end(),
                     [&](const auto& constraint) { return satisfied(constraint, values); });
}

}  // namespace weft
