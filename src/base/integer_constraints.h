// Small problems in positive integers: variables with bounds, value sets, factors and primes, constraints between sums,
// products and powers of them. For choices under hardware limits, such as tile counts of a kernel, where sizes must
// divide one another and products must stay below a capacity. After ConstrINT of FlashRNN (Pöppel et al. 2024,
// arXiv:2412.07752).
//
//   IntegerProblem p;
//   const auto a = p.add({.name = "a", .values = {512}}), b = p.add({.name = "b"});
//   p.constrain(divisible(a, b));
//   p.solve({.choices = {{"b", IntegerProblem::Order::largest_first}}, .count = 3});  // b = 512, 256, 128
//
// Ranges of terms follow from those of their parts and the reverse, until nothing changes (arc consistency on intervals,
// common factors and, below 2048 values, sets); then depth-first search halves the ranges of one variable after another.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/integer_range.h"

namespace weft {

struct IntegerVariable {
  std::string name;
  int64_t lower = 1, upper = int64_t{1} << 30;  // lower at least 1
  std::vector<int64_t> values = {};             // only these; empty: any
  int64_t factor = 1;                           // divides the value
  std::vector<int64_t> primes = {};             // the value has no other prime factors; empty: any
};

// An assignment that makes a term larger than kLargestTerm is no solution.
// A positive constant, a variable, or what +, * and power make of terms.
class IntegerTerm {
 public:
  enum class Kind { constant, variable, sum, product, power };
  struct Node {
    Kind kind = Kind::constant;
    int64_t number = 1;  // constant: the value; variable: its place in the problem; power: the exponent
    std::shared_ptr<const Node> left, right;  // right: of sums and products
  };

  IntegerTerm(int64_t constant);  // InputError below 1. Implicit, so that 2 * x is a term
  explicit IntegerTerm(std::shared_ptr<const Node> node) : node_(std::move(node)) {}
  const Node& node() const { return *node_; }

 private:
  std::shared_ptr<const Node> node_;
};
IntegerTerm operator+(const IntegerTerm& a, const IntegerTerm& b);
IntegerTerm operator*(const IntegerTerm& a, const IntegerTerm& b);
IntegerTerm power(const IntegerTerm& base, int64_t exponent);

struct IntegerConstraint {
  enum class Kind { equal, at_most, divisible, all, any };
  Kind kind = Kind::all;
  std::vector<IntegerTerm> terms = {};        // two, of equal, at_most and divisible
  std::vector<IntegerConstraint> parts = {};  // of all and any
};
IntegerConstraint equal(IntegerTerm a, IntegerTerm b);
IntegerConstraint at_most(IntegerTerm a, IntegerTerm b);
IntegerConstraint divisible(IntegerTerm a, IntegerTerm b);  // a % b == 0
IntegerConstraint all_of(std::vector<IntegerConstraint> parts);
IntegerConstraint any_of(std::vector<IntegerConstraint> parts);

using IntegerAssignment = std::map<std::string, int64_t>;

class IntegerProblem {
 public:
  enum class Order { smallest_first, largest_first };
  struct Choice {
    std::string variable;
    Order order = Order::smallest_first;
  };
  struct Search {
    // Decided in this order; all of the first one's values with the better ones of the second, and so on. Solutions differ
    // in these; the other variables take the smallest values that fit. Empty: all variables, smallest first.
    std::vector<Choice> choices = {};
    int64_t count = 1;                             // solutions; 0: all
    std::vector<IntegerAssignment> excluded = {};  // values of all choices that are not wanted
    int64_t most_steps = 10'000'000;               // Unsupported when the search takes more
  };

  IntegerTerm add(const IntegerVariable&
                      variable);  // InputError for bounds that make no sense, or a second one of a name
  void constrain(IntegerConstraint constraint);

  // In the order of the choices; fewer than `count` when there are no more.
  std::vector<IntegerAssignment> solve(const Search& search) const;
  // The ranges before any search, by variable; all empty when there is no solution for certain.
  std::map<std::string, IntegerRange> propagate() const;
  // Whether all variables are within their bounds and all constraints hold, by evaluation.
  bool holds(const IntegerAssignment& assignment) const;

 private:
  std::vector<IntegerVariable> variables_;
  std::vector<IntegerConstraint> constraints_;  // small ones first
};

}  // namespace weft
