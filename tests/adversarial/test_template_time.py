"""No single call of a template takes time that is quadratic in the length of its texts.

The limit of CPU time is checked between calls, so it does not end such a call.
"""

import fuzz
import pytest

from grm_jax.text import sandbox

MESSAGE = "x" * 100_000
QUADRATIC = {
    "rfind": "{{ ('a' * n).rfind('ab' + 'a' * m) }}",
    "rindex": "{{ ('a' * n).rindex('ab' + 'a' * m) }}",
    "rsplit": "{{ ('a' * n).rsplit('ab' + 'a' * m, 1) | length }}",
    "rpartition": "{{ ('a' * n).rpartition('ab' + 'a' * m) | length }}",
    "strip": "{{ ('\u5001' * n).strip('\u4e01' * m + '\u5001') }}",
    "lstrip": "{{ ('\u5001' * n).lstrip('\u4e01' * m + '\u5001') }}",
    "rstrip": "{{ ('\u5001' * n).rstrip('\u4e01' * m + '\u5001') }}",
    "trim": "{{ ('\u5001' * n) | trim('\u4e01' * m + '\u5001') }}",
    "bytes": "{{ ('a' * n).encode().rfind(('ab' + 'a' * m).encode()) }}",
    "punycode": "{{ wide.encode('Puny-Code') | length }}",
    "idna": "{{ 'x'.encode(encoding='idna') }}",
    "select": "{{ ('a' * m) | list | select('in', ('b' * m) | list) | list | length }}",
    "sum": "{{ ('a' * n) | list | map('list') | list | sum(start=[]) | length }}",
    "wordwrap": "{{ ('a' * n) | wordwrap(1) | length }}",
}
MESSAGES = {"select": "it does more work", "sum": "No filter named", "wordwrap": "No filter named"}
LINEAR = (
    "find('ab' + 'a' * m)", "index('a' * m)", "count('ab' + 'a' * m)",
    "split('ab' + 'a' * m)", "partition('ab' + 'a' * m)", "rsplit('</think>', 1)", "rstrip('\\n')",
    "rfind('</think>', 0, n)", "strip()",
)  # fmt: skip


def rendered(source: str) -> str:
    wide = "".join(map(chr, range(0x4E00, 0x5E00)))
    variables = {"n": 100_000, "m": 50_000, "message": MESSAGE, "wide": wide}
    with fuzz.time_limit(15):
        return sandbox.render(sandbox.load(source, "T"), variables, "T")


@pytest.mark.parametrize("name", QUADRATIC)
def test_a_quadratic_call_is_refused(name):
    with pytest.raises(ValueError, match=MESSAGES.get(name, "it calls")):
        rendered(QUADRATIC[name])


@pytest.mark.parametrize("call", LINEAR)
def test_a_linear_call_on_a_long_text_is_allowed(call):
    assert rendered(f"{{{{ (('a' * n).{call} ~ '') | length }}}}") != "0"
