#!/usr/bin/env python3
"""Expected renderings of chat templates, by Jinja2 set up as transformers sets it up.

usage: tools/make_chat_template_cases.py tests/data/chat_templates

Reads <folder>/templates/*.jinja (whole templates, each rendered for all conversations of conversations.json) and
<folder>/snippets.json (pairs of a template and its variables), writes <folder>/families.json and <folder>/language.json.
Needs jinja2 >= 3.1.6.
"""
import datetime
import json
import pathlib
import sys
import time

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1700000000
KINDS = {"messages", "tools", "documents"}


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW).strftime(f)
    return env


def case(name, template, variables):
    made = {"name": name, "template": template, "variables": variables}
    try:
        made["rendered"] = environment().from_string(template).render(**variables)
    except Exception as error:  # noqa: BLE001  whatever Jinja raises is what the template is wrong in
        made["error"] = f"{type(error).__name__}: {error}"
    return made


def write(path, cases):
    path.write_text(json.dumps({"cases": cases}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {len(cases)} cases, {sum('error' in c for c in cases)} of them errors")


def main(folder):
    conversations = json.loads((folder / "conversations.json").read_text(encoding="utf-8"))
    families = []
    for file in sorted((folder / "templates").glob("*.jinja")):
        for name, variables in conversations.items():
            families.append(case(f"{file.stem}/{name}", file.read_text(encoding="utf-8"), variables))
    write(folder / "families.json", families)
    snippets = json.loads((folder / "snippets.json").read_text(encoding="utf-8"))
    variables = snippets["variables"]
    write(folder / "language.json", [case(t, t, variables) for t in snippets["templates"]])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    time.tzset()
    main(pathlib.Path(sys.argv[1]))
