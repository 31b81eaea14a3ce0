"""Adds Debian's packages of an image to its bill of materials: sbom.py BOM FOLDER, a file of dpkg's fields for each package."""

import json
import pathlib
import sys

bom = pathlib.Path(sys.argv[1])
content = json.loads(bom.read_text())
for package in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    fields = dict(line.split(": ", 1) for line in package.read_text().splitlines() if line[:1].isalpha() and ": " in line)
    purl = f"pkg:deb/debian/{fields['Package']}@{fields['Version']}?arch={fields['Architecture']}"
    content["components"].append(
        {"type": "library", "bom-ref": purl, "name": fields["Package"], "version": fields["Version"], "purl": purl}
    )
bom.write_text(json.dumps(content, indent=1) + "\n")
