"""Makes chat_golden.json: chat templates and what `transformers` renders from them.

Run:  python make_chat_golden.py   (needs transformers and jinja2; 5.23.0 and 3.1.6 were used)
The templates are written here in the manner of the families named; they are not copies of the published ones.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [SYSTEM, {"role": "user", "content": "  Who are you? \n"}],
    [SYSTEM, {"role": "user", "content": "One"}, {"role": "assistant", "content": " Two "}, {"role": "user", "content": "Drei, 'é' \"q\" \\ <b>"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "tool", "content": "42"}],
    [],
]

TEMPLATES = {
    "SmolLM2": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "Llama 2": """{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set rest = messages[1:] -%}{%- set system_text = messages[0]['content'] -%}
{%- else -%}
    {%- set rest = messages -%}{%- set system_text = false -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif -%}
    {%- if loop.index0 == 0 and system_text != false -%}
        {%- set text = '<<SYS>>\\n' + system_text + '\\n<</SYS>>\\n\\n' + message['content'] -%}
    {%- else -%}
        {%- set text = message['content'] -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' -%}
        {{ ' ' + text.strip() + ' ' + eos_token }}
    {%- endif -%}
{%- endfor -%}""",
    "Llama 3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- The system message goes first. #}
{%- if messages and messages[0].role == "system" %}
    {%- set system_message = messages[0]["content"]|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role in ["tool", "ipython"] %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is number %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "TinyLlama": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "Mistral": """{%- if messages and messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, got " ~ message.role ~ "!") }}
    {%- endif %}
{%- endfor %}
{{- user_messages | length }}
""",
    "Qwen 2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages and messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "white space": """  {% if true %}
  a {%- if true -%}   b   {%- endif %} c
{# comment #}
\t{% if true +%}
 d
    {%+ if true %} e {% endif %}
{% endif %}  {% set x = 1 %}  {{ x }}
{{ "f" }}
{% endif %}

g  {{- ' h ' -}}  i

""",
    "operators": """{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 * 1.5 }} {{ 10 / 5 }} {{ (1 + 2) * 3 }}
{{ 1 ~ 'a' ~ none ~ true ~ 2.0 ~ [1, 'x', "it's"] ~ {'k': 1} }} {{ not true and false or true }} {{ 1 == 1.0 }} {{ true == 1 }}
{{ 'a' in 'cat' }} {{ 'x' not in ['x'] }} {{ 'k' in {'k': 0} }} {{ 3 > 2 and 2 >= 2 and 'a' < 'b' }} {{ '' or 'fallback' }} {{ 0 and 1 }}
{{ 'yes' if 1 else 'no' }}{{ 'hidden' if false }} {{ [1, 2] + [3] }} {{ 'adjacent' 'strings' }} {{ "esc\\t\\\\\\x41\\u00e9\\q" }} {{ - 3 }}
{{ 'a' == 'b' }} {{ [1, [2]] == [1, [2]] }} {{ none == none }} {{ missing == missing }} {{ not missing }}""",
    "slices": """{% set l = [0, 1, 2, 3, 4, 5] %}{{ l[1:] }} {{ l[:-1] }} {{ l[::2] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[10:] }} {{ l[4:1:-2] }}
{{ l[-1] }} {{ l[7] }} {{ 'héllo'[1:3] }} {{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[::-1] }} {{ l[:2][0] }} {{ l[2:][1:] }}""",
    "filters": """{{ '  a b ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'aB é' | upper }}|{{ 'aB' | lower }}|{{ 'hello world' | capitalize }}|{{ 'hello big-world' | title }}
{{ [1, 2, 3] | length }} {{ 'é12' | length }} {{ {'a': 1} | count }} {{ missing | default('d') }} {{ '' | default('e', true) }} {{ 0 | d('f') }}
{{ ['a', 'b'] | join(', ') }} {{ [1, 2] | join }} {{ [3, 1] | first }} {{ 'xyz' | last }} {{ [1, 2] | reverse | list }} {{ 'ab' | reverse }}
{{ 'a-b-c' | replace('-', '+') }} {{ '42' | int + 1 }} {{ 'x' | int }} {{ 3.9 | int }} {{ 5 | string ~ 'x' }} {{ 'abc' | list }}
{{ {'a': [1, none, true, 'é"\\n'], 'b': {}} | tojson }} {{ [] | tojson }} {{ {'a': [1, {'b': 2}]} | tojson(indent=2) }} {{ 1.5 | tojson }}
{% for k, v in {'x': 1, 'y': 2} | items %}{{ k }}={{ v }};{% endfor %} {{ messages | map(attribute='role') | list }}
{{ messages | rejectattr('role', 'equalto', 'user') | list | length }} {{ messages | selectattr('content') | list | length }}""",
    "methods": """{{ '  a '.strip() }}|{{ 'xay'.lstrip('x') }}|{{ 'xay'.rstrip('yx') }}|{{ 'a,b,c'.split(',') }}|{{ ' a  b c '.split() }}|{{ 'a,b,c'.split(',', 1)[1] }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('ab') }} {{ 'aBc'.upper() }} {{ 'ABC'.lower() }} {{ 'hello world'.title() }} {{ 'a-b'.replace('-', '') }}
{{ 'hé!'.find('!') }} {{ 'abc'.find('z') }} {{ ', '.join(['a', 'b']) }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 3) }}
{% for key, value in {'p': 1, 'q': 2}.items() %}{{ key }}{{ value }}{% endfor %} {{ {'p': 1}.keys() | list }} {{ {'p': 1}.values() | list }}""",
    "tests": """{{ missing is defined }} {{ messages is defined }} {{ missing is undefined }} {{ none is none }} {{ tools is none }} {{ 'a' is string }} {{ 1 is string }}
{{ 1 is number }} {{ true is number }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ 1 is boolean }} {{ true is true }} {{ 1 is true }}
{{ messages is iterable }} {{ 1 is iterable }} {{ 'x' is sequence }} {{ {} is mapping }} {{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }}
{{ 'a' is eq 'a' }} {{ 'a' is not ne('a') }} {{ 2 is in [1, 2] }} {{ not 'a' is not string }} {{ documents is not none and documents | length > 0 }}""",
    "loops": """{% for x in range(5) if x != 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }} {% else %}none{% endfor %}
{% for x in [] %}x{% else %}empty{% endfor %} {% for x in missing %}x{% endfor %} {% for c in 'hé' %}<{{ c }}>{% endfor %} {% for k in {'a': 1} %}{{ k }}{% endfor %}
{% for x in range(1, 10, 3) %}{% if x == 7 %}{% break %}{% endif %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %} {% for a, b in [[1, 2], [3, 4]] %}{{ a * b }} {% endfor %}
{% set x = 'outer' %}{% for i in [1] %}{% set x = 'inner' %}{{ x }}{% endfor %}{{ x }} {% set ns = namespace(n=0, s='') %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}{{ ns.s }}
{% for i in [1, 2, 3] %}{{ loop.previtem is defined }}{{ loop.nextitem if not loop.last }}{% for j in [1] %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}
{% if true %}{% set leaks = 1 %}{% endif %}{{ leaks }} {% set block %}a{{ 1 }}b{% endset %}{{ block | upper }} {% generation %}said{% endgeneration %} {% for i in range(3, 0, -1) %}{{ i }}{% endfor %}""",
}


def main():
    cases = []
    for name, template in TEMPLATES.items():
        compiled = _compile_jinja_template(template)
        rows = []
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                try:
                    rows.append(compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                                                bos_token="<s>", eos_token="</s>"))
                except Exception as error:  # raise_exception
                    rows.append({"error": str(error)})
        cases.append({"name": name, "template": template, "outputs": rows if len(set(map(str, rows))) > 1 else rows[:1]})
    path = pathlib.Path(__file__).with_name("chat_golden.json")
    path.write_text(json.dumps({"conversations": CONVERSATIONS, "cases": cases}, indent=1, ensure_ascii=False) + "\n")
    print(len(cases), "templates,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
