#include "data/jinja/render.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "data/jinja/builtins.h"

namespace cmoe::jinja {
namespace {

using Node = Expression::Kind;

/// What a statement leaves behind: go on, leave the loop, take its next round.
enum class Flow { on, stop, next };

/// A runaway template ends here instead of in the machine's memory.
constexpr size_t kMaxOutput = size_t{64} << 20;

class Renderer {
 public:
  explicit Renderer(const Dict& variables) { scopes_.push_back(variables); }

  std::string run(const Block& block) {
    run_block(block);
    return std::move(out_);
  }

 private:
  // --- statements ---

  Flow run_block(const Block& block) {
    for (const Statement& statement : block) {
      const Flow flow = run_statement(statement);
      if (flow != Flow::on) return flow;
      CMOE_CHECK(out_.size() <= kMaxOutput, "chat template: line {}: output of more than {} bytes", statement.line, kMaxOutput);
    }
    return Flow::on;
  }

  Flow run_statement(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::data:
        out_ += statement.text;
        return Flow::on;
      case Statement::Kind::output:
        out_ += to_text(evaluate(*statement.expression));
        return Flow::on;
      case Statement::Kind::branch:
        return run_block(truth(evaluate(*statement.expression)) ? statement.body : statement.otherwise);
      case Statement::Kind::loop:
        return run_loop(statement);
      case Statement::Kind::stop:
        return Flow::stop;
      case Statement::Kind::next:
        return Flow::next;
      case Statement::Kind::set:
        if (statement.names.size() == 1) {
          assign(statement.names[0], evaluate(*statement.expression));
        } else {
          Value* target = find_variable(statement.names[0]);
          CMOE_CHECK(target && is_namespace(*target), "chat template: line {}: '{}' is no namespace", statement.line,
                     statement.names[0]);
          set_member(*target->dict(), statement.names[1], evaluate_member(*statement.expression));
        }
        return Flow::on;
      case Statement::Kind::set_block: {
        std::string before = std::move(out_);
        out_.clear();
        const Flow flow = run_block(statement.body);
        Value text = std::move(out_);
        out_ = std::move(before);
        assign(statement.names[0], std::move(text));
        return flow;
      }
    }
    return Flow::on;
  }

  Flow run_loop(const Statement& statement) {
    const List all = items_of(evaluate(*statement.expression), statement.line);
    List items;
    scopes_.emplace_back();  // of the names of one round; what is set in it ends with it
    for (const Value& item : all) {
      if (!statement.condition) {
        items = all;
        break;
      }
      bind(statement, item);
      if (truth(evaluate(*statement.condition))) items.push_back(item);
    }
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<size_t>(i);
      scopes_.back().clear();
      bind(statement, items[index]);
      Dict loop{
          {"index", i + 1},         {"index0", i},    {"revindex", count - i}, {"revindex0", count - i - 1}, {"first", i == 0},
          {"last", i + 1 == count}, {"length", count}};
      loop.emplace_back("previtem", i > 0 ? items[index - 1] : Value(Undefined{"previtem"}));
      loop.emplace_back("nextitem", i + 1 < count ? items[index + 1] : Value(Undefined{"nextitem"}));
      assign("loop", std::move(loop));
      if (run_block(statement.body) == Flow::stop) break;
    }
    scopes_.pop_back();
    return count == 0 ? run_block(statement.otherwise) : Flow::on;
  }

  void bind(const Statement& statement, const Value& item) {
    if (statement.names.size() == 1) {
      assign(statement.names[0], item);
      return;
    }
    const List parts = items_of(item, statement.line);
    CMOE_CHECK(parts.size() == statement.names.size(), "chat template: line {}: {} names for {} values", statement.line,
               statement.names.size(), parts.size());
    for (size_t i = 0; i < parts.size(); ++i) assign(statement.names[i], parts[i]);
  }

  // --- variables ---

  static void set_member(Dict& dict, const std::string& name, Value value) {
    if (Value* member = find_member(dict, name)) {
      *member = std::move(value);
    } else {
      dict.emplace_back(name, std::move(value));
    }
  }
  void assign(const std::string& name, Value value) { set_member(scopes_.back(), name, std::move(value)); }
  Value* find_variable(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (Value* value = find_member(*scope, name)) return value;
    }
    return nullptr;
  }

  // --- expressions ---

  Value evaluate(const Expression& node) {
    switch (node.kind) {
      case Node::constant:
        return node.value;
      case Node::name: {
        const Value* value = find_variable(node.text);
        return value ? *value : Value(Undefined{node.text});
      }
      case Node::list: {
        List list;
        for (const auto& item : node.args) list.push_back(evaluate_member(*item));
        return list;
      }
      case Node::dict: {
        Dict dict;
        for (size_t i = 0; i < node.args.size(); i += 2)
          set_member(dict, to_text(evaluate(*node.args[i])), evaluate_member(*node.args[i + 1]));
        return dict;
      }
      case Node::member:
        return member(evaluate(*node.args[0]), node.text, node.line);
      case Node::index:
        return index(evaluate(*node.args[0]), evaluate(*node.args[1]), node.line);
      case Node::slice:
        return slice(node);
      case Node::call: {
        Value value = call_function(node.text, arguments(node, 0), node.line);
        if (node.text == "namespace") namespaces_.push_back(value);
        return value;
      }
      case Node::method:
        return call_method(node.text, evaluate(*node.args[0]), arguments(node, 1), node.line);
      case Node::filter:
        return apply_filter(node.text, evaluate(*node.args[0]), arguments(node, 1), node.line);
      case Node::test:
        return apply_test(node.text, evaluate(*node.args[0]), arguments(node, 1), node.line);
      case Node::negate:
        return !truth(evaluate(*node.args[0]));
      case Node::minus:
        return minus(evaluate(*node.args[0]), node.line);
      case Node::binary:
        return binary(node);
      case Node::condition:
        if (truth(evaluate(*node.args[1]))) return evaluate(*node.args[0]);
        return node.args[2] ? evaluate(*node.args[2]) : Value(Undefined{"the missing else"});
    }
    return {};
  }

  /// A value that goes into a list, dict or namespace. Only namespaces change, so with none of them inside another value no
  /// value can hold itself.
  Value evaluate_member(const Expression& node) {
    Value value = evaluate(node);
    CMOE_CHECK(!is_namespace(value), "chat template: line {}: a namespace inside another value is not supported", node.line);
    return value;
  }

  bool is_namespace(const Value& value) const {
    return value.dict() && std::any_of(namespaces_.begin(), namespaces_.end(),
                                       [&](const Value& known) { return known.dict() == value.dict(); });
  }

  Arguments arguments(const Expression& node, size_t from) {
    Arguments result;
    for (size_t i = from; i < node.args.size(); ++i) result.values.push_back(evaluate(*node.args[i]));
    for (const auto& [name, value] : node.named) result.named.emplace_back(name, evaluate_member(*value));
    return result;
  }

  static Value member(const Value& value, const std::string& name, int line) {
    CMOE_CHECK(!value.is_undefined(), "chat template: line {}: member '{}' of {}", line, name, type_name(value));
    const Value* found = value.dict() ? find_member(*value.dict(), name) : nullptr;
    return found ? *found : Value(Undefined{name});
  }

  static Value index(const Value& value, const Value& key, int line) {
    if (key.string()) return member(value, *key.string(), line);
    int64_t storage = 0;
    const int64_t* number = key.integer(storage);
    CMOE_CHECK(!value.is_undefined() && number, "chat template: line {}: index {} of {}", line, type_name(key),
               type_name(value));
    if (!value.list() && !value.string()) return Undefined{std::to_string(*number)};
    const List list = items_of(value, line);
    const auto size = static_cast<int64_t>(list.size());
    const int64_t position = *number < 0 ? *number + size : *number;
    if (position < 0 || position >= size) return Undefined{std::to_string(*number)};
    return list[static_cast<size_t>(position)];
  }

  Value slice(const Expression& node) {
    const Value value = evaluate(*node.args[0]);
    CMOE_CHECK(value.list() || value.string(), "chat template: line {}: slice of {}; expected a list or string", node.line,
               type_name(value));
    const List list = items_of(value, node.line);
    const auto size = static_cast<int64_t>(list.size());
    const auto bound = [&](size_t which) -> const int64_t* {
      if (!node.args[which]) return nullptr;
      const Value number = evaluate(*node.args[which]);
      if (number.is_none()) return nullptr;
      int64_t& storage = bounds_[which - 1];
      const int64_t* found = number.integer(storage);
      CMOE_CHECK(found, "chat template: line {}: slice bound {}; expected an int", node.line, type_name(number));
      storage = *found;
      return &storage;
    };
    const int64_t* first = bound(1);
    const int64_t* last = bound(2);
    const int64_t* by = bound(3);
    const int64_t step = by ? *by : 1;
    CMOE_CHECK(step != 0, "chat template: line {}: slice with step 0", node.line);
    // Python's rule: negative bounds count from the end, and bounds are clamped to what the direction can reach.
    const int64_t low = step > 0 ? 0 : -1;
    const int64_t high = step > 0 ? size : size - 1;
    const auto clamp = [&](int64_t position) { return std::clamp(position < 0 ? position + size : position, low, high); };
    const int64_t begin = first ? clamp(*first) : (step > 0 ? low : high);
    const int64_t end = last ? clamp(*last) : (step > 0 ? high : low);
    List part;
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) part.push_back(list[static_cast<size_t>(i)]);
    if (!value.string()) return part;
    std::string text;
    for (const Value& character : part) text += *character.string();
    return text;
  }

  static Value minus(const Value& value, int line) {
    int64_t storage = 0;
    if (const auto* number = value.as<double>()) return -*number;
    const int64_t* number = value.integer(storage);
    CMOE_CHECK(number, "chat template: line {}: '-' of {}", line, type_name(value));
    return -*number;
  }

  Value binary(const Expression& node) {
    const std::string& op = node.text;
    Value left = evaluate(*node.args[0]);
    if (op == "and" || op == "or") return truth(left) == (op == "and") ? evaluate(*node.args[1]) : left;
    const Value right = evaluate(*node.args[1]);
    if (op == "==") return equal(left, right);
    if (op == "!=") return !equal(left, right);
    if (op == "~") return to_text(left) + to_text(right);
    if (op == "in") return contains(right, left, node.line);
    if (op == "+" && left.string() && right.string()) return *left.string() + *right.string();
    if (op == "+" && left.list() && right.list()) {
      List joined = *left.list();
      joined.insert(joined.end(), right.list()->begin(), right.list()->end());
      return joined;
    }
    if (left.string() && right.string()) {
      const int order = left.string()->compare(*right.string());
      if (op == "<") return order < 0;
      if (op == "<=") return order <= 0;
      if (op == ">") return order > 0;
      if (op == ">=") return order >= 0;
    }
    return arithmetic(op, left, right, node.line);
  }

  static Value contains(const Value& container, const Value& item, int line) {
    if (container.string() && item.string()) return container.string()->find(*item.string()) != std::string::npos;
    if (container.dict()) return item.string() && find_member(*container.dict(), *item.string()) != nullptr;
    CMOE_CHECK(!container.string() && !container.is_none(), "chat template: line {}: 'in' of {} and {}", line, type_name(item),
               type_name(container));
    const List list = items_of(container, line);
    return std::any_of(list.begin(), list.end(), [&](const Value& other) { return equal(other, item); });
  }

  static Value arithmetic(const std::string& op, const Value& left, const Value& right, int line) {
    int64_t left_storage = 0, right_storage = 0;
    const int64_t* a = left.integer(left_storage);
    const int64_t* b = right.integer(right_storage);
    const auto* x = left.as<double>();
    const auto* y = right.as<double>();
    CMOE_CHECK((a || x) && (b || y), "chat template: line {}: '{}' of {} and {} is not supported", line, op, type_name(left),
               type_name(right));
    if (op == "/" || op == "//" || op == "%") {
      CMOE_CHECK(b ? *b != 0 : *y != 0, "chat template: line {}: division by zero", line);
    }
    if (a && b && op != "/") {
      int64_t result = 0;
      bool overflow = false;
      if (op == "+") overflow = __builtin_add_overflow(*a, *b, &result);
      if (op == "-") overflow = __builtin_sub_overflow(*a, *b, &result);
      if (op == "*") overflow = __builtin_mul_overflow(*a, *b, &result);
      CMOE_CHECK(!overflow && !(*b == -1 && (op == "//" || op == "%") && *a == INT64_MIN),
                 "chat template: line {}: '{}' overflows", line, op);
      if (op == "+" || op == "-" || op == "*") return result;
      if (op == "<") return *a < *b;
      if (op == "<=") return *a <= *b;
      if (op == ">") return *a > *b;
      if (op == ">=") return *a >= *b;
      // Python rounds down: the remainder has the divisor's sign.
      const int64_t remainder = *a % *b;
      const bool adjust = remainder != 0 && (remainder < 0) != (*b < 0);
      return op == "//" ? *a / *b - (adjust ? 1 : 0) : remainder + (adjust ? *b : 0);
    }
    const double p = x ? *x : static_cast<double>(*a);
    const double q = y ? *y : static_cast<double>(*b);
    if (op == "+") return p + q;
    if (op == "-") return p - q;
    if (op == "*") return p * q;
    if (op == "/") return p / q;
    if (op == "//") return std::floor(p / q);
    if (op == "%") return p - q * std::floor(p / q);
    if (op == "<") return p < q;
    if (op == "<=") return p <= q;
    if (op == ">") return p > q;
    return p >= q;
  }

  std::vector<Dict> scopes_;
  std::vector<Value> namespaces_;  // all that were made; kept alive, so that an address means one
  std::string out_;
  int64_t bounds_[3] = {};
};

}  // namespace

std::string render(const Block& block, const Dict& variables) { return Renderer(variables).run(block); }

}  // namespace cmoe::jinja
