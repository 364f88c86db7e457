#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "data/chat_template.h"
#include "data/support.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> messages;
  for (const auto& entry : list) messages.push_back({entry["role"], entry["content"]});
  return messages;
}

std::string render(const std::string& source) { return apply_chat_template(source, {{"user", "hi"}}, "<s>", "</s>", true); }

std::string refusal(const std::string& source) {
  return message_of([&] { render(source); });
}

// What `transformers` renders; see make_chat_golden.py.
TEST(ChatTemplate, EqualsTransformers) {
  const json golden = json::parse(read_whole(CMOE_SOURCE_DIR "/tests/data/chat_golden.json"));
  for (const auto& entry : golden["cases"]) {
    const auto source = entry["template"].get<std::string>();
    const json& outputs = entry["outputs"];
    SCOPED_TRACE(entry["name"].get<std::string>());
    size_t i = 0;
    for (const auto& conversation : golden["conversations"]) {
      for (const bool prompt : {false, true}) {
        SCOPED_TRACE(conversation.dump());
        const json& expected = outputs[outputs.size() == 1 ? 0 : i++];
        const auto render_it = [&] { return apply_chat_template(source, messages_of(conversation), "<s>", "</s>", prompt); };
        if (expected.is_string()) {
          EXPECT_EQ(render_it(), expected.get<std::string>());
        } else {
          EXPECT_EQ(message_of(render_it), "chat template: " + expected["error"].get<std::string>());
        }
      }
    }
  }
}

TEST(ChatTemplate, TokensThatTheModelLacksAreUndefined) {
  EXPECT_EQ(apply_chat_template("{{ bos_token }}|{{ eos_token is defined }}", {}, "", "</s>", false), "|True");
}

TEST(ChatTemplate, NamesTheConstructItDoesNotDo) {
  EXPECT_EQ(refusal("a\n{% macro f(x) %}{% endmacro %}"),
            "chat template: line 2: statement 'macro' is not supported; expected if, for, set, break, continue or generation");
  EXPECT_THAT(refusal("{{ strftime_now('%d') }}"), HasSubstr("line 1: function 'strftime_now' is not supported"));
  EXPECT_THAT(refusal("\n\n{{ 'a' | wordwrap }}"), HasSubstr("line 3: filter 'wordwrap' is not supported"));
  EXPECT_THAT(refusal("{{ 1 is callable }}"), HasSubstr("test 'callable' is not supported"));
  EXPECT_THAT(refusal("{{ 'a'.encode() }}"), HasSubstr("method 'encode' of string is not supported"));
  EXPECT_THAT(refusal("{{ messages.append(1) }}"), HasSubstr("method 'append' of list is not supported"));
  EXPECT_THAT(refusal("{{ 2 ** 3 }}"), HasSubstr("operator '**' is not supported"));
  EXPECT_THAT(refusal("{{ 1 < 2 < 3 }}"), HasSubstr("chained comparison '<' is not supported"));
  EXPECT_THAT(refusal("{{ (1, 2) }}"), HasSubstr("tuples are not supported"));
  EXPECT_THAT(refusal("{% for x in messages recursive %}{% endfor %}"), HasSubstr("'recursive' loops are not supported"));
}

TEST(ChatTemplate, NamesWhatIsWrong) {
  EXPECT_THAT(refusal("{% if true %}a"), HasSubstr("line 1: 'endif' is missing"));
  EXPECT_THAT(refusal("{% for x in messages %}"), HasSubstr("'endfor' is missing"));
  EXPECT_THAT(refusal("{% endif %}"), HasSubstr("statement 'endif' is not supported"));
  EXPECT_THAT(refusal("{{ 1"), HasSubstr("tag without end"));
  EXPECT_THAT(refusal("{# 1"), HasSubstr("comment without end"));
  EXPECT_THAT(refusal("{{ 'a }}"), HasSubstr("string without end"));
  EXPECT_THAT(refusal("{{ 1 2 }}"), HasSubstr("expected }}; found '2'"));
  EXPECT_THAT(refusal("{{ }}"), HasSubstr("expected a value; found }}"));
  EXPECT_THAT(refusal("{{ a ! b }}"), HasSubstr("'!' cannot stand in an expression"));
  EXPECT_THAT(refusal("{% break %}"), HasSubstr("'break' outside a loop"));
  EXPECT_THAT(refusal("{{ missing.member }}"), HasSubstr("member 'member' of undefined 'missing'"));
  EXPECT_THAT(refusal("{{ 'a' + 1 }}"), HasSubstr("'+' of string and int is not supported"));
  EXPECT_THAT(refusal("{{ 'a' + missing }}"), HasSubstr("'+' of string and undefined 'missing' is not supported"));
  EXPECT_THAT(refusal("{{ 1 // 0 }}"), HasSubstr("division by zero"));
  EXPECT_THAT(refusal("{% set x.y = 1 %}"), HasSubstr("'x' is no namespace"));
  EXPECT_THAT(refusal("{% set d = {'a': 1} %}{% set d.a = [d] %}"), HasSubstr("'d' is no namespace"));
  EXPECT_THAT(refusal("{% for a, b in [[1]] %}{% endfor %}"), HasSubstr("2 names for 1 values"));
  EXPECT_THAT(refusal("{{ raise_exception('no ' ~ messages[0].role) }}"), HasSubstr("chat template: no user"));
  EXPECT_THAT(message_of([] {
                apply_chat_template("", {{"user", "a\xff"}}, "", "", false);
              }),
              HasSubstr("chat message 0: byte 1 is not"));
}

// A template is part of a downloaded model: it may fail, but neither crash nor eat the machine.
TEST(ChatTemplate, RunawayTemplatesEndInAnError) {
  const auto repeat = [](const std::string& text, int count) {
    std::string result;
    for (int i = 0; i < count; ++i) result += text;
    return result;
  };
  EXPECT_THAT(refusal("{{ " + repeat("(", 100000) + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(refusal("{{ " + repeat("not ", 100000) + "1 }}"), HasSubstr("nested more than"));
  EXPECT_THAT(refusal("{{ " + repeat("-", 100000) + "1 }}"), HasSubstr("nested more than"));
  EXPECT_THAT(refusal("{{ 1" + repeat("+1", 100000) + " }}"), HasSubstr("an expression of more than"));
  EXPECT_THAT(refusal("{{ a" + repeat(".a", 100000) + " }}"), HasSubstr("an expression of more than"));
  EXPECT_THAT(refusal(repeat("{% if 1 %}", 100000)), HasSubstr("nested more than"));
  EXPECT_THAT(refusal("{% if 1 %}" + repeat("{% elif 1 %}", 100000)), HasSubstr("nested more than"));
  EXPECT_THAT(refusal("{{ range(100000000) }}"), HasSubstr("range of more than"));
  for (const char* inside : {"n", "[n]", "{'k': n}", "namespace(b=n)"}) {  // a value must not come to hold itself
    EXPECT_THAT(refusal(std::string("{% set n = namespace(a=1) %}{% set n.a = ") + inside + " %}"),
                HasSubstr("a namespace inside another value is not supported"));
  }
  EXPECT_THAT(refusal("{% set n = namespace(a=1) %}{% for i in range(100000) %}{% set n.a = [n.a] %}{% endfor %}"),
              HasSubstr("a value nested more than 100 deep"));
  EXPECT_THAT(refusal("{% for i in range(1000000) %}" + repeat("0123456789", 10000) + "{% endfor %}"),
              HasSubstr("output of more than"));
}

}  // namespace
}  // namespace cmoe
