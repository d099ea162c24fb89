"""Chat templates in the styles of published ones, and chats to render with them.

`chat_styles.json` holds what transformers renders. To write it again, with the peers' Python:

    PYTHON tests/text/chat_styles.py > tests/text/chat_styles.json
"""

# ruff: noqa: E501 (lines of templates)
import datetime
import json

CHATS = [
    [{"role": "user", "content": "  What is 2 + 2?\n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say \"é\" & <b> 'x' \\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nDone.\n"},
        {"role": "user", "content": "[TOOL] a\tb"},
    ],
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

STYLES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "headers with a date": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\nToday: " + date_string + "\\n" + system_message + "<|end|>" }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}""",
    "thinking is removed": """{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|' ~ message.role ~ '|>' ~ content ~ '<|end|>\\n' }}
{%- endfor %}""",
    "last query by index": """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if not ns.found and message.role == 'user' and message.content is string
    and not message.content.startswith('[TOOL]') %}
{%- set ns.found = true %}{%- set ns.last = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{{ loop.index0 }}{{ '*' if loop.index0 == ns.last }} {{ message.role }}: {{ message.content }}
{% endfor %}""",
    "generation": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}
<model>{% generation %}{{ message['content'] | trim }}<end>
{% endgeneration %}{% else %}<user>{{ message['content'] | trim }}<end>
{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}""",
    "generation with control": """{% for message in messages -%}
  {% if message.role == 'assistant' -%}
    {% generation -%}{{ message.content }}{{ eos_token }}{%- endgeneration -%}
  {% else %}{{ message.content }}{% endif %}
{% endfor %}""",
    "json": """{{ messages | tojson }}
{{ messages | tojson(indent=2) }}
{% for m in messages %}{{ m.content | tojson(ensure_ascii=true) }} {{ {"b": m.role, "a": [1, 2.5, none,
true]} | tojson(separators=(',', ':'), sort_keys=true) }}{% endfor %}""",
    "loop controls": """{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
{{ message.role }}:{{ message.content }}{% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}""",
    "alternation is checked": """{% for message in messages if message.role != 'system' %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}""",
    "no system turn": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{{ message.content }}{% endfor %}""",
    "macros": """{%- macro turn(role, text, end='<|end|>') -%}
<|{{ role | upper }}|>{{ text | replace('\\n', ' ') | title }}{{ end }}
{%- endmacro -%}
{%- for m in messages %}{{ turn(m.role, m.content) }}{{ '\\n' if not loop.last else '' }}{% endfor %}""",
    "tools and documents": """{% if tools %}{{ tools | tojson }}{% elif tools is none %}no tools{% endif %}
{% if documents is defined and documents %}{{ documents | length }}{% else %}no documents{% endif %}
{% for m in messages %}{% if m.tool_calls is defined %}call{% endif %}{{ m.get('name', '-') }}
{{ m['content'] | length }} {{ m.content.split(' ') | first }} {{ m.content[:3] }}{% endfor %}""",
    "filters": """{% set roles = messages | map(attribute='role') | list %}{{ roles | unique | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | groupby('role') | length }}
{{ messages[0] | items | list | length }} {{ {'b': 1, 'a': 2} | dictsort }} {{ 'a-b' | replace('-', '+') }}
{{ '%s-%d' | format('x', 3) }} {{ [3, 1, 2] | sort | reverse | list }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }}
{{ 'abc' | indent(2, true) }} {{ messages[-1].content | default('none') | string | trim }} {{ '  x ' | trim }}
{{ 'x' * 3 ~ 1 }} {{ [1] + [2] }} {{ (1, 2) }} {{ '<b>' | e }} {{ '{:>4}'.format(3) }} {{ range(3) | list }}
{{ [1, 2, 3] | batch(2) | list }} {{ 'a b' | wordcount }} {{ 3.7 | int }} {{ -1 | abs }} {{ 'x' in 'xy' }}""",
}  # fmt: skip


def rendered_by_transformers() -> dict[str, list[str]]:
    """{style: the text of each chat, or "raises: REASON"}; at the fixed day of our templates."""
    import jinja2
    from transformers.utils import chat_template_utils

    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    chat_template_utils.datetime = Today
    texts: dict[str, list[str]] = {}
    for style, template in STYLES.items():
        for chat in CHATS:
            options = {"chat_template": template, "add_generation_prompt": True, **SPECIAL}
            try:
                ((text, *_), _) = chat_template_utils.render_jinja_template([chat], **options)
            except jinja2.TemplateError as error:
                text = f"raises: {error}"
            texts.setdefault(style, []).append(text)
    return texts


if __name__ == "__main__":
    print(json.dumps(rendered_by_transformers(), indent=1, ensure_ascii=False))
