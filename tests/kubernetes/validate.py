"""Checks Kubernetes manifests against the schemas of a release, strictly: an unknown field is a fault.

    validate.py FILE…

Prints every document as a line of JSON; names all faults on stderr, and ends with 1 if there are any.
"""

import json
import sys

import kubernetes_validate
import yaml

VERSION = "1.37"


def main() -> int:
    faulty = False
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            documents = list(yaml.safe_load_all(file))
        for document in documents:
            try:
                kubernetes_validate.validate(document, VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                faulty = True
                place = "/".join(str(part) for part in error.path)
                print(f"{path}: {document.get('kind')}: {place}: {error.message}", file=sys.stderr)
            print(json.dumps(document))
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
