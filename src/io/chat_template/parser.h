// From tokens to the syntax tree. Expressions are in parse_expressions.cc, statements in parse_statements.cc.
#pragma once

#include <initializer_list>
#include <set>

#include "io/chat_template/lexer.h"
#include "io/chat_template/syntax.h"

namespace weft::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Body run();

 private:
  using Ends = std::initializer_list<const char*>;

  // parse_statements.cc
  Body body(Ends ends);                // up to a block that begins with one of the names, which stays
  Body block(Ends ends);               // the end of this tag, then body(ends)
  Body closed_block(const char* end);  // block({end}), and the end taken
  NodePtr statement();
  NodePtr if_statement();
  NodePtr for_statement();
  NodePtr set_statement();
  NodePtr macro_statement();
  NodePtr call_statement();
  NodePtr filter_statement();
  NodePtr with_statement();
  NodePtr block_statement();
  NodePtr generation_statement();
  void signature(Node& macro);
  void macro_body(Node& macro, const char* end);
  NodePtr target(const char* stop, bool may_be_attribute);
  NodePtr single_target(bool may_be_attribute);

  // parse_expressions.cc
  NodePtr expression(bool with_condition = true);
  NodePtr tuple(bool with_condition = true, const char* end_name = nullptr, bool in_parentheses = false);
  bool tuple_ends(const char* end_name) const;
  NodePtr either();
  NodePtr both();
  NodePtr negation();
  NodePtr comparison();
  NodePtr sum();
  NodePtr concatenation();
  NodePtr product();
  NodePtr power();
  NodePtr unary(bool with_filters = true);
  NodePtr primary();
  NodePtr list_literal();
  NodePtr dict_literal();
  NodePtr number();
  NodePtr postfix(NodePtr node);
  NodePtr subscript(NodePtr node);
  NodePtr subscripted();
  NodePtr filters(NodePtr node);
  NodePtr filter(NodePtr node, bool first_named = false);
  NodePtr test(NodePtr node);
  NodePtr call(NodePtr node);
  CallArguments call_arguments();
  NodePtr binary(NodePtr left, const std::string& op, NodePtr right, int line);

  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
  bool take_op(std::string_view op);
  bool take_name(std::string_view name);
  void expect_op(std::string_view op);
  std::string expect_name(std::string_view what);
  void expect_block_end();
  [[noreturn]] void wrong(const std::string& expected) const;
  static std::string shown(const Token& token);
  NodePtr make(NodeKind kind, int line, std::vector<NodePtr> of = {}) const;
  void settle(Node& node) const;  // its depth, from its parts

  struct Nest {
    explicit Nest(Parser& p);
    ~Nest() { --parser.nesting_; }
    Parser& parser;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                // that break and continue may mean
  std::set<std::string> names_;  // named in the macro being read
};

}  // namespace weft::jinja
