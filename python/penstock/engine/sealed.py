"""The engine file: an uncompressed zip whose every member is hashed. Writing it, and reading it without trusting it.

    manifest.json          format, hashes of all members, and the manifest (plan_json)
    evidence.json          timings, accuracy, calibration: for people and reports, never read to run
    weights.safetensors    tensors of the ONNX graphs below, each once
    artifacts/FORM.onnx    graphs that programs were compiled from (`source` always), so that they can be compiled again
    artifacts/FORM.safetensors  the same where a GPU executes it: steps and weights (engine.cuda.form)
    artifacts/N.blob       what a library made of one, for exactly this machine

Every byte of a member is under a hash in the manifest, and the manifest under its own. Members are hashed when the file
is read and once more when they are used, so that a file changed in between is noticed. Called by build (write),
`engine` and `check` (read).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock import limits
from penstock.engine import archive
from penstock.engine.archive import Archive
from penstock.engine.plan import LOWERED, Manifest
from penstock.engine.plan_json import manifest_from_json, manifest_to_json
from penstock.errors import ModelLoadError

FORMAT: Final = 1
"""Raised when files can't be read by what was there before."""

MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence.json"
WEIGHTS: Final = "weights.safetensors"
ARTIFACTS: Final = "artifacts/"


def graph_member(form: str) -> str:
    """Where an engine keeps the graph of a form."""
    return f"{ARTIFACTS}{form}.{'safetensors' if form.startswith(LOWERED) else 'onnx'}"


@dataclass(frozen=True, slots=True)
class Sealed:
    """An engine file that was read: every hash was right."""

    name: str
    manifest: Manifest
    members: Mapping[str, memoryview]
    """By name; read from the file and checked each time they are asked for."""

    content_hash: str
    """sha256 over everything in the file: two engines with the same are the same."""

    archive: Archive

    @property
    def evidence(self) -> dict[str, Any]:
        """What the build found. Raises ModelLoadError when it is no JSON object."""
        return _object(self.name, EVIDENCE, self.members[EVIDENCE])

    def save(self, path: Path) -> None:
        """The same bytes under another name; a file that is there is replaced in one step. Raises OSError."""
        self.archive.copy(path)


class _Members(Mapping[str, memoryview]):
    """Members on demand."""

    def __init__(self, archive: Archive, digests: Mapping[str, str]) -> None:
        self._archive = archive
        self._digests = digests

    def __getitem__(self, name: str) -> memoryview:
        digest = self._digests[name]
        data = self._archive.read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ModelLoadError(f"{self._archive.name}: {name} was changed while it was in use; build it again")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def write(
    path: Path,
    manifest: Manifest,
    members: Mapping[str, bytes | Path],
    evidence: Mapping[str, Any],
    *,
    lasting: bool = True,
) -> None:
    """Seal an engine; one that is not `lasting` is gone when the machine loses power.

    members  artifacts and weights by name: bytes, or the file that holds them.

    Raises OSError (the disk); what was at `path` before stays then.
    """
    everything = {EVIDENCE: _json(evidence), **members}
    body = {
        "manifest": manifest_to_json(manifest),
        "members": {name: archive.digest(data) for name, data in everything.items()},
    }
    head = {"format": FORMAT, "content_hash": _content_hash(body), **body}
    archive.write(path, {MANIFEST: _json(head), **everything}, lasting=lasting)


def read(path: Path) -> Sealed:
    """Open an engine file and verify all of it.

    Raises NotFound, and ModelLoadError with what is wrong: not an engine, cut, changed, or of a newer format.
    """
    opened = Archive(path)
    for needed in (MANIFEST, EVIDENCE):
        if needed not in opened.places:
            raise ModelLoadError(f"{path.name} is no engine: {needed} is missing")
    head = _object(opened.name, MANIFEST, opened.read(MANIFEST))
    version = head.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelLoadError(f"{path.name}: the manifest has no format number; build it again")
    if version > FORMAT:
        raise ModelLoadError(
            f"{path.name} has engine format {version}, this Penstock reads up to {FORMAT}; update it or build again"
        )
    digests = _verified(opened, head)
    try:
        manifest = manifest_from_json(head["manifest"])
    except ModelLoadError as error:
        raise ModelLoadError(f"{path.name}: {error}; build it again") from None
    for program in manifest.programs:
        if program.artifact not in digests or not program.artifact.startswith(ARTIFACTS):
            raise ModelLoadError(f"{path.name}: {program.artifact[:100]!a} is not in the file; build it again")
    return Sealed(path.name, manifest, _Members(opened, digests), str(head["content_hash"]), opened)


def _verified(opened: Archive, head: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of all members, once they are right."""
    name, listed = opened.name, head.get("members")
    if set(head) != {"format", "content_hash", "manifest", "members"} or not isinstance(listed, dict):
        raise ModelLoadError(f"{name}: the manifest is not as it was sealed; build it again")
    if head["content_hash"] != _content_hash({"manifest": head["manifest"], "members": listed}):
        raise ModelLoadError(f"{name}: the manifest was changed after it was sealed; build it again")
    if listed.keys() != opened.places.keys() - {MANIFEST}:
        raise ModelLoadError(f"{name}: the manifest lists other members than the file has; build it again")
    for member, digest in listed.items():
        if opened.digest(member) != digest:
            raise ModelLoadError(f"{name}: {member} was damaged or changed after it was sealed; build it again")
    return {member: str(digest) for member, digest in listed.items()}


def _object(name: str, member: str, data: memoryview) -> dict[str, Any]:
    if len(data) > limits.ENGINE_JSON_BYTES:
        raise ModelLoadError(f"{name}: {member} has {len(data)} bytes, expected at most {limits.ENGINE_JSON_BYTES}")
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelLoadError(f"{name}: {member} is damaged; build it again")
    return found


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1, allow_nan=False).encode()


def _content_hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
