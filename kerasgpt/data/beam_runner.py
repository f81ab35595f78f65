"""Owns the cleaning of many inputs by Apache Beam, on one machine or many.

Not: what is done with an input (staging.py), nor what comes after
(preparation.py): of each document 272 bytes decide about duplicates, so that
one process does it for all.
"""

import dataclasses
import functools
import pathlib

from kerasgpt.config import InputError
from kerasgpt.data.sources import Input
from kerasgpt.data.staging import (
    StagingConfig,
    cleaning_processes,
    load_staged,
    stage_input,
)


def stage_by_beam(missing, config, num_workers, tell, *, options=()):
    """Stages inputs by a Beam pipeline, as `preparation.stage_here` does.

    Each input is an element, read, cleaned and hashed by one worker: a large
    corpus comes in many files. Workers and the caller must see the same files
    under the same paths, those of the output folder too.

    Args:
        missing: list of (Input, folder).
        config: StagingConfig.
        num_workers: int, of the DirectRunner, if `options` name no other.
        tell: function of one str.
        options: list of str, of Beam, such as --runner=FlinkRunner.

    Raises:
        InputError: if Beam is not installed, or the pipeline fails.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            "--runner beam needs Apache Beam; pip install 'kerasgpt[beam]'."
        ) from error
    if not missing:
        return
    options = list(options)
    if not any(option.startswith("--runner") for option in options):
        options += [
            "--runner=DirectRunner",
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={num_workers}",
        ]
    elements = [
        (dataclasses.asdict(one), str(folder)) for one, folder in missing
    ]
    stage = functools.partial(stage_element, settings=config.to_dict())
    try:
        with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            _ = (
                pipeline
                | "inputs" >> beam.Create(elements)
                | "one a worker" >> beam.Reshuffle()
                | "read, clean, hash" >> beam.Map(stage)
            )
    except Exception as error:
        # A runner wraps what its workers raised, each in its own way.
        raise InputError(f"--runner beam: {error}") from error
    for one, folder in missing:
        counts, _, _ = load_staged(folder)
        tell(
            f"{one.path}: {counts.read.get('documents', 0):,} read, "
            f"{counts.kept.get('documents', 0):,} kept"
        )


def stage_element(element, *, settings):
    """Stages one input; what a worker runs.

    Args:
        element: (dict of an Input, str folder).
        settings: dict of a StagingConfig.
    """
    one, folder = element
    config = StagingConfig.from_dict(settings)
    with cleaning_processes(config, 1) as clean_all:
        stage_input(Input(**one), pathlib.Path(folder), config, clean_all)
