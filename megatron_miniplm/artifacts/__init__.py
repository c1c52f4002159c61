"""What one stage hands to the next: fingerprints, manifests, lineage, and writes that are all or nothing."""

from megatron_miniplm.artifacts.atomic import atomic_output, write_array, write_json, write_text
from megatron_miniplm.artifacts.directories import sole_writer, sole_writer_of_file, write_result
from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file, digest_values
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, load_manifest, manifest_path

__all__ = [
    "ArtifactInput",
    "Fingerprint",
    "Manifest",
    "atomic_output",
    "digest_file",
    "digest_values",
    "load_manifest",
    "manifest_path",
    "sole_writer",
    "sole_writer_of_file",
    "write_array",
    "write_json",
    "write_result",
    "write_text",
]
