"""A stand-in for two good models that are asked about `examples/data/lease.txt`: replies of usual kind and length.

The root model's replies are written out; the sub-model finds the clauses by a rule. Everything else is real: HTTP, guest, cells.
"""

from __future__ import annotations

import re

from openai_server import OpenAIServer, Request, reply

__all__ = ["lease_server"]

LOOK = """I will look at the shape of the document first.

```python
print(len(context))
print(context[:600])
import re
headings = re.findall(r"^\\d+\\. .+$", context, re.M)
print(headings)
```"""

READ = """The lease has numbered clauses. I will ask about each section in one batch, since a right to leave may stand outside of section 11.

```python
sections = re.split(r"\\n(?=\\d+\\. [A-Z]|SCHEDULE)", context)
prompts = [
    "Does this section of a lease let the TENANT end the lease before 30 April 2032? "
    "If so, name each clause and its condition in one line; else reply NONE.\\n\\n" + section
    for section in sections
]
found = [reply for reply in llm_batch(prompts) if reply and reply.strip() != "NONE"]
for reply in found:
    print(reply)
```"""

ANSWER = """These are the clauses; the others concern the landlord or the end of the term.

```python
FINAL("The tenant may leave early under these clauses:\\n" + "\\n".join("- " + line for reply in found for line in reply.splitlines()))
```"""

ANY = """```python
FINAL(context[:60] if isinstance(context, str) else str(context))
```"""

CLAUSE = re.compile(r"^(\d+\.\d) (.*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def lease_server() -> OpenAIServer:
    """Return a server, to be entered, that answers as the two models would."""
    return OpenAIServer(_respond, models=("gpt-5", "gpt-5-nano", "qwen3"))


def _respond(request: Request):
    messages = request.body["messages"]
    if messages[0]["role"] != "system":
        return reply(_read(request.prompt))
    turn = sum(message["role"] == "assistant" for message in messages)
    if "leave early" not in messages[1]["content"]:
        return reply(ANY)
    return reply([LOOK, READ, ANSWER][min(turn, 2)])


def _read(prompt: str) -> str:
    lines = [
        f"{number}: {' '.join(text.split())}"
        for number, text in CLAUSE.findall(prompt)
        if re.search(r"Tenant may end|either party may end", text) and "2.3" not in number
    ]
    return "\n".join(lines) or "NONE"
