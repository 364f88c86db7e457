#include "data/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "data/utf8.h"

namespace cmoe::jinja {
namespace {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    for (size_t i = 0; i < source.size(); ++i) {  // all line ends are \n
      if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
      text_ += source[i] == '\r' ? '\n' : source[i];
    }
    if (!text_.empty() && text_.back() == '\n') text_.pop_back();
  }

  std::vector<Token> run() {
    while (position_ < text_.size()) {
      const size_t open = find_opening();
      add_data(open);
      if (open == text_.size()) break;
      const char kind = text_[open + 1];
      position_ = open + 2;
      if (peek() == '-' || peek() == '+') ++position_;
      if (kind == '#') {
        skip_comment();
      } else {
        add(kind == '{' ? Token::Kind::output_begin : Token::Kind::block_begin, "");
        read_expression(kind == '{' ? '}' : '%');
      }
    }
    add(Token::Kind::end, "");
    return std::move(tokens_);
  }

 private:
  char peek(size_t ahead = 0) const { return position_ + ahead < text_.size() ? text_[position_ + ahead] : '\0'; }

  void add(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_at(position_)}); }

  int line_at(size_t position) {
    for (; counted_ < position && counted_ < text_.size(); ++counted_) line_ += text_[counted_] == '\n';
    return line_;
  }

  size_t find_opening() const {
    for (size_t i = text_.find('{', position_); i != std::string::npos; i = text_.find('{', i + 1)) {
      if (i + 1 < text_.size() && (text_[i + 1] == '{' || text_[i + 1] == '%' || text_[i + 1] == '#')) return i;
    }
    return text_.size();
  }

  /// The text up to the tag at `open`, less what the tag's mark or lstrip_blocks takes off its end.
  void add_data(size_t open) {
    std::string data = text_.substr(position_, open - position_);
    const char mark = open + 2 < text_.size() ? text_[open + 2] : '\0';
    if (open < text_.size() && mark == '-') {
      data.erase(data.find_last_not_of(kSpaces) + 1);
    } else if (open < text_.size() && mark != '+' && text_[open + 1] != '{') {
      const size_t line = data.rfind('\n') + 1;  // npos + 1 is 0
      const bool at_line_start = line > 0 || line_starting_;
      if (at_line_start && data.find_first_not_of(kSpaces, line) == std::string::npos) data.erase(line);
    }
    if (!data.empty()) add(Token::Kind::data, std::move(data));
  }

  void skip_comment() {
    const size_t close = text_.find("#}", position_);
    CMOE_CHECK(close != std::string::npos, "chat template: line {}: comment without end; expected #}}", line_at(position_));
    position_ = close + 2;
    after_tag(text_[close - 1], true);
  }

  /// White space behind a tag: all of it after '-', one newline after a block or comment unless '+'.
  void after_tag(char mark, bool trims_newline) {
    const size_t begin = position_;
    if (mark == '-') {
      while (position_ < text_.size() && kSpaces.find(text_[position_]) != std::string_view::npos) ++position_;
    } else if (trims_newline && mark != '+' && peek() == '\n') {
      ++position_;
    }
    line_starting_ = position_ > begin && text_[position_ - 1] == '\n';
  }

  void read_expression(char close) {
    int depth = 0;  // of braces: a dict may end with }}
    for (;;) {
      while (position_ < text_.size() && kSpaces.find(text_[position_]) != std::string_view::npos) ++position_;
      CMOE_CHECK(position_ < text_.size(), "chat template: line {}: tag without end", line_at(position_));
      const bool marked = (peek() == '-' || peek() == '+') && peek(1) == close && peek(2) == '}';
      if (depth == 0 && (marked || (peek() == close && peek(1) == '}'))) {
        const char mark = marked ? peek() : '\0';
        position_ += marked ? 3 : 2;
        add(close == '}' ? Token::Kind::output_end : Token::Kind::block_end, "");
        after_tag(mark, close == '%');
        return;
      }
      const char c = peek();
      if (c == '\'' || c == '"') {
        read_string(c);
      } else if (std::isdigit(static_cast<unsigned char>(c))) {
        read_number();
      } else if (std::isalpha(static_cast<unsigned char>(c)) || c == '_') {
        const size_t begin = position_;
        while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '_') ++position_;
        add(Token::Kind::name, text_.substr(begin, position_ - begin));
      } else {
        if (c == '{') ++depth;
        if (c == '}') --depth;
        read_symbol();
      }
    }
  }

  void read_number() {
    const size_t begin = position_;
    while (std::isdigit(static_cast<unsigned char>(peek()))) ++position_;
    const bool real = peek() == '.' && std::isdigit(static_cast<unsigned char>(peek(1)));
    if (real) {
      ++position_;
      while (std::isdigit(static_cast<unsigned char>(peek()))) ++position_;
    }
    CMOE_CHECK(position_ - begin <= 18, "chat template: line {}: number of {} digits; expected at most 18", line_at(position_),
               position_ - begin);
    add(real ? Token::Kind::real : Token::Kind::integer, text_.substr(begin, position_ - begin));
  }

  void read_string(char quote) {
    std::string value;
    const int line = line_at(position_);
    for (++position_;; ++position_) {
      CMOE_CHECK(position_ < text_.size(), "chat template: line {}: string without end", line);
      if (peek() == quote) break;
      if (peek() != '\\') {
        value += peek();
        continue;
      }
      ++position_;
      switch (peek()) {
        case 'n':
          value += '\n';
          break;
        case 't':
          value += '\t';
          break;
        case 'r':
          value += '\r';
          break;
        case '\n':
          break;
        case '\\':
        case '\'':
        case '"':
          value += peek();
          break;
        case 'x':
          value += read_code_point(2);
          break;
        case 'u':
          value += read_code_point(4);
          break;
        default:
          value += std::string("\\") + peek();  // Python keeps an escape it does not know
      }
    }
    ++position_;
    add(Token::Kind::string, std::move(value));
  }

  std::string read_code_point(size_t digits) {
    char32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      ++position_;
      const char c = peek();
      CMOE_CHECK(std::isxdigit(static_cast<unsigned char>(c)), "chat template: line {}: escape needs {} hexadecimal digits",
                 line_at(position_), digits);
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    CMOE_CHECK(value < 0xd800 || value > 0xdfff, "chat template: line {}: escape of half a character", line_at(position_));
    std::string text;
    append_utf8(text, value);
    return text;
  }

  void read_symbol() {
    static constexpr std::string_view kSymbols[] = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "<",
                                                    ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ",", ":", ".", "|"};
    for (std::string_view symbol : kSymbols) {
      if (std::string_view(text_).substr(position_).starts_with(symbol)) {
        position_ += symbol.size();
        add(Token::Kind::symbol, std::string(symbol));
        return;
      }
    }
    fail("chat template: line {}: '{}' cannot stand in an expression", line_at(position_), peek());
  }

  std::string text_;
  size_t position_ = 0;
  size_t counted_ = 0;  // newlines before this are in line_
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace cmoe::jinja
