#!/usr/bin/env python3
"""Generates docs/api.md from the comments of the protos. With `--check` it only reports whether the page is current.

`make api-docs` runs it, with buf and protobuf for Python.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
BUF = ROOT / "target" / "tools" / "bin" / "buf"
PROTO = "thingspace/esim/v1/esim.proto"
SOURCE = f"../proto/{PROTO}"
# The numbers of the fields of descriptor.proto, of which the paths of comments consist.
MESSAGES, ENUMS, SERVICES, SYNTAX, MEMBERS = 4, 5, 6, 12, 2

COLUMNS = 140

Field = descriptor_pb2.FieldDescriptorProto
KINDS = {value: name.removeprefix("TYPE_").lower() for name, value in Field.Type.items()}


def parse():
    command = [BUF, "build", "proto", "--path", f"proto/{PROTO}", "--output", "-"]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(built).file
    return next(file for file in files if file.name == PROTO)


class Page:
    def __init__(self, file):
        self.file, self.lines = file, []
        self.comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        self.names = {f".{file.package}.{item.name}": item.name for item in [*file.message_type, *file.enum_type]}

    def comment(self, *path):
        """The paragraphs of a comment, each in one line, with links to the messages that it names."""
        paragraphs = re.split(r"\n\s*\n", self.comments.get(path, "").strip())
        return [self.escape(" ".join(paragraph.split())) for paragraph in paragraphs]

    @staticmethod
    def escape(text):
        return re.sub(r"([<|\\*])", r"\\\1", text)

    def kind(self, field):
        """The type of a field, with a link if it is on this page."""
        if not field.type_name:
            name = KINDS[field.type]
        elif name := self.names.get(field.type_name):
            name = f"[{name}](#{name.lower()})"
        else:
            name = field.type_name.removeprefix(".")
        return f"repeated {name}" if field.label == Field.LABEL_REPEATED else name

    def write(self):
        self.lines += [
            "<!-- Made by docs/generate.py from the comments of the proto. Change those, and run `make api-docs`. -->",
            "# The API",
            "",
            f"This is the package `{self.file.package}`, as its [proto file]({SOURCE}) describes it.",
            "[clients.md](clients.md) says how to call it, and [errors.md](errors.md) what to do about each error.",
            "",
        ]
        self.paragraphs(SYNTAX)
        for index, service in enumerate(self.file.service):
            self.service(service, SERVICES, index)
        self.lines += ["## Messages", ""]
        for index, message in enumerate(self.file.message_type):
            self.message(message, MESSAGES, index)
        self.lines += ["## Enums", ""]
        for index, enum in enumerate(self.file.enum_type):
            self.enum(enum, ENUMS, index)
        return "\n".join(self.lines).rstrip() + "\n"

    def heading(self, name, *path):
        self.lines += [name, ""]
        self.paragraphs(*path)

    def paragraphs(self, *path):
        for paragraph in self.comment(*path):
            self.lines += [*textwrap.wrap(paragraph, COLUMNS, break_on_hyphens=False), ""]

    def service(self, service, *path):
        self.heading(f"## {service.name}", *path)
        for index, method in enumerate(service.method):
            request, response = (f"[{name}](#{name.lower()})" for name in map(self.names.get, [method.input_type, method.output_type]))
            stream = "a stream of " if method.server_streaming else ""
            self.heading(f"### {method.name}", *path, MEMBERS, index)
            self.lines += [f"Takes {request} and returns {stream}{response}.", ""]

    def message(self, message, *path):
        self.heading(f"### {message.name}", *path)
        self.table(["field", "type", "meaning"], [
            [f"`{field.name}`", self.kind(field), self.meaning(field, message, *path, MEMBERS, index)]
            for index, field in enumerate(message.field)
        ])

    def meaning(self, field, message, *path):
        others = [other.name for other in message.field if other.HasField("oneof_index") and other.name != field.name]
        note = [f"At most one of this, {' and '.join(f'`{name}`' for name in others)}."] if field.HasField("oneof_index") else []
        return " ".join([*self.comment(*path), *note])

    def enum(self, enum, *path):
        self.heading(f"### {enum.name}", *path)
        self.table(["value", "number", "meaning"], [
            [f"`{value.name}`", str(value.number), " ".join(self.comment(*path, MEMBERS, index))]
            for index, value in enumerate(enum.value)
        ])

    def table(self, head, rows):
        for row in [head, ["---"] * len(head), *rows]:
            self.lines.append(f"| {' | '.join(row)} |")
        self.lines.append("")


def main():
    page = Page(parse()).write()
    if "--check" in sys.argv:
        sys.exit(None if PAGE.read_text() == page else "docs/api.md is not current: run `make api-docs`")
    PAGE.write_text(page)


main()
