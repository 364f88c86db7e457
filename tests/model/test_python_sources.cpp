#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "model/export/python_sources.h"

namespace cmoe {
namespace {

std::string read_source(const std::string& name) {
  std::ifstream in(std::string(CMOE_SOURCE_DIR) + "/src/model/export/" + name, std::ios::binary);
  EXPECT_TRUE(in.is_open()) << name;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// CMake treats ';', '[' and '@' specially on the way into the program; the text must come through byte for byte.
TEST(PythonSources, AreTheFilesByteForByte) {
  EXPECT_EQ(modeling_source(), read_source("modeling_cmoe.py"));
  EXPECT_EQ(configuration_source(), read_source("configuration_cmoe.py"));
}

TEST(PythonSources, NameWhatConfigJsonRefersTo) {
  EXPECT_NE(modeling_source().find("class CmoeForCausalLM("), std::string_view::npos);
  EXPECT_NE(modeling_source().find("class CmoeModel("), std::string_view::npos);
  EXPECT_NE(configuration_source().find("class CmoeConfig("), std::string_view::npos);
}

}  // namespace
}  // namespace cmoe
