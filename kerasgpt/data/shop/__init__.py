"""Owns the embedded English and Chinese customer-service world."""

from kerasgpt.data.shop.chats import (
    TASKS,
    generate_chats,
    generate_questions,
)
from kerasgpt.data.shop.documents import generate_documents
from kerasgpt.data.shop.labels import LABELLED_TASKS, generate_labelled_texts
from kerasgpt.data.shop.pairs import generate_pairs
from kerasgpt.data.shop.world import World, build_world

__all__ = [
    "LABELLED_TASKS",
    "TASKS",
    "World",
    "build_world",
    "generate_chats",
    "generate_documents",
    "generate_labelled_texts",
    "generate_pairs",
    "generate_questions",
]
