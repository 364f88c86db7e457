#include "data/pretokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "data/normalizer.h"
#include "data/regex.h"
#include "data/utf8.h"

namespace cmoe {
namespace {

/// A stretch of a piece, and whether the pattern matched it.
struct Stretch {
  size_t begin;
  size_t end;
  bool match;
};

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior behavior_of(const std::string& name, const std::string& where) {
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  fail("{}.behavior: '{}' is not supported; expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
       where, name);
}

/// Joins stretches as the behaviour says. A run of matches takes only its first (with next: last) match along, as the
/// `tokenizers` library does.
std::vector<Stretch> join(std::vector<Stretch> parts, Behavior behavior) {
  std::vector<Stretch> joined;
  bool previous_match = false;
  switch (behavior) {
    case Behavior::isolated:
      return parts;
    case Behavior::removed:
      for (const Stretch& part : parts) {
        if (!part.match) joined.push_back(part);
      }
      return joined;
    case Behavior::contiguous:
      for (const Stretch& part : parts) {
        if (!joined.empty() && joined.back().match == part.match) {
          joined.back().end = part.end;
        } else {
          joined.push_back(part);
        }
      }
      return joined;
    case Behavior::merged_with_previous:
      for (const Stretch& part : parts) {
        if (part.match && !previous_match && !joined.empty()) {
          joined.back().end = part.end;
        } else {
          joined.push_back(part);
        }
        previous_match = part.match;
      }
      return joined;
    case Behavior::merged_with_next:
      std::reverse(parts.begin(), parts.end());
      for (const Stretch& part : parts) {
        if (part.match && !previous_match && !joined.empty()) {
          joined.back().begin = part.begin;
        } else {
          joined.push_back(part);
        }
        previous_match = part.match;
      }
      std::reverse(joined.begin(), joined.end());
      return joined;
  }
  return parts;
}

class SplitStep : public PreTokenizer::Step {
 public:
  SplitStep(Regex regex, Behavior behavior, bool invert) : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  void split(std::string_view piece, bool, TextArena&, std::vector<std::string_view>& words) const override {
    if (behavior_ == Behavior::isolated) {  // every stretch is a word: nothing to join, nothing to store
      size_t previous = 0;
      regex_.for_each_match(piece, [&](size_t begin, size_t end) {
        if (begin != previous) words.push_back(piece.substr(previous, begin - previous));
        words.push_back(piece.substr(begin, end - begin));
        previous = end;
      });
      if (previous != piece.size()) words.push_back(piece.substr(previous));
      return;
    }
    std::vector<Stretch> parts;
    size_t previous = 0;
    regex_.for_each_match(piece, [&](size_t begin, size_t end) {
      if (begin != previous) parts.push_back({previous, begin, invert_});
      parts.push_back({begin, end, !invert_});
      previous = end;
    });
    if (previous != piece.size()) parts.push_back({previous, piece.size(), invert_});
    for (const Stretch& part : join(std::move(parts), behavior_))
      words.push_back(piece.substr(part.begin, part.end - part.begin));
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

class DigitsStep : public PreTokenizer::Step {
 public:
  explicit DigitsStep(bool individual) : individual_(individual) {}

  void split(std::string_view piece, bool, TextArena&, std::vector<std::string_view>& words) const override {
    size_t begin = 0;
    bool in_digits = false;
    for (size_t position = 0; position < piece.size();) {
      const size_t start = position;
      const bool digit = is_numeric(next_code_point(piece, position));
      const bool cut = digit != in_digits || (digit && individual_);
      if (cut && start != begin) {
        words.push_back(piece.substr(begin, start - begin));
        begin = start;
      }
      in_digits = digit;
    }
    if (begin != piece.size()) words.push_back(piece.substr(begin));
  }

 private:
  bool individual_;
};

class ByteLevelStep : public PreTokenizer::Step {
 public:
  ByteLevelStep(bool add_prefix_space, bool use_regex, const std::string& where) : add_prefix_space_(add_prefix_space) {
    if (use_regex) {
      split_.emplace(Regex(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", where),
                     Behavior::isolated, false);
    }
  }

  void split(std::string_view piece, bool at_start, TextArena& arena, std::vector<std::string_view>& words) const override {
    if (add_prefix_space_ && piece.front() != ' ') piece = arena.emplace_back(" ").append(piece);
    if (split_) {
      split_->split(piece, at_start, arena, words);
    } else {
      words.push_back(piece);
    }
  }

 private:
  bool add_prefix_space_;
  std::optional<SplitStep> split_;
};

class MetaspaceStep : public PreTokenizer::Step {
 public:
  enum class Prepend { always, first, never };
  MetaspaceStep(std::string replacement, Prepend prepend, bool cut)
      : replacement_(std::move(replacement)), prepend_(prepend), cut_(cut) {}

  void split(std::string_view piece, bool at_start, TextArena& arena, std::vector<std::string_view>& words) const override {
    std::string text = replace_all(piece, " ", replacement_);
    const bool wanted = prepend_ == Prepend::always || (prepend_ == Prepend::first && at_start);
    if (wanted && !text.starts_with(replacement_)) text.insert(0, replacement_);
    const std::string_view whole = arena.emplace_back(std::move(text));
    if (!cut_) {
      words.push_back(whole);
      return;
    }
    // Each replacement opens a word of its own.
    for (size_t begin = 0; begin < whole.size();) {
      const size_t end =
          std::min(whole.find(replacement_, begin + (whole.substr(begin).starts_with(replacement_) ? replacement_.size() : 0)),
                   whole.size());
      words.push_back(whole.substr(begin, end - begin));
      begin = end;
    }
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool cut_;
};

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& spec, const std::string& where) {
  if (!spec.is_null()) add(spec, where);
}

void PreTokenizer::add(const nlohmann::json& spec, const std::string& where) {
  const auto type = spec.at("type").get<std::string>();
  // ByteLevel rewrites the text in its alphabet, and a later step would see that instead of the text.
  CMOE_CHECK(!byte_level_, "{}.type: step '{}' after ByteLevel is not supported; expected ByteLevel to be the last", where,
             type);
  if (type == "Sequence") {
    size_t i = 0;
    for (const auto& step : spec.at("pretokenizers")) add(step, fmt::format("{}.pretokenizers[{}]", where, i++));
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    steps_.push_back(
        std::make_shared<ByteLevelStep>(spec.value("add_prefix_space", true), spec.value("use_regex", true), where));
  } else if (type == "Digits") {
    steps_.push_back(std::make_shared<DigitsStep>(spec.value("individual_digits", false)));
  } else if (type == "Split") {
    const auto& pattern = spec.at("pattern");
    const Behavior behavior = behavior_of(spec.at("behavior").get<std::string>(), where);
    const std::string name = where + ".pattern";
    if (pattern.contains("Regex")) {
      steps_.push_back(std::make_shared<SplitStep>(Regex(pattern.at("Regex").get<std::string>(), name), behavior,
                                                   spec.value("invert", false)));
    } else {
      CMOE_CHECK(pattern.contains("String"), "{}: expected Regex or String; found {}", name, pattern.dump());
      steps_.push_back(std::make_shared<SplitStep>(Regex::literal(pattern.at("String").get<std::string>(), name), behavior,
                                                   spec.value("invert", false)));
    }
  } else if (type == "Metaspace") {
    const std::string scheme = spec.value("prepend_scheme", spec.value("add_prefix_space", true) ? "always" : "never");
    CMOE_CHECK(scheme == "always" || scheme == "first" || scheme == "never",
               "{}.prepend_scheme: expected always, first or never; found '{}'", where, scheme);
    using Prepend = MetaspaceStep::Prepend;
    const Prepend prepend = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
    steps_.push_back(
        std::make_shared<MetaspaceStep>(spec.at("replacement").get<std::string>(), prepend, spec.value("split", true)));
  } else {
    fail("{}.type: pre-tokenizer '{}' is not supported; expected ByteLevel, Split, Digits, Metaspace or a Sequence of them",
         where, type);
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, bool at_start, TextArena& arena) const {
  std::vector<std::string_view> words;
  if (text.empty()) return words;
  words.push_back(text);
  std::vector<std::string_view> next;
  for (const auto& step : steps_) {
    next.clear();
    next.reserve(words.size() + text.size() / 6);
    for (size_t i = 0; i < words.size(); ++i) step->split(words[i], at_start && i == 0, arena, next);
    words.swap(next);
  }
  return words;
}

}  // namespace cmoe
