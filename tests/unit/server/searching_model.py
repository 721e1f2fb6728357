"""A small Qwen2 that knows by heart to ask for a search and what to say of its results.

Loaded by tests with runpy.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Completion, Usage
from qianyan.inputs.processor import Processor
from qianyan.models.attention import NoCache
from qianyan.models.registry import build_model, qwen2_config
from qianyan.models.weights import initialise, save_checkpoint
from qianyan.server.search import SearchTurns
from qianyan.server.search_options import read_search_options
from qianyan.server.search_providers import SearchProvider
from qianyan.train.bundled.vocabulary import train_vocabulary, write_vocabulary

QUESTION = "Are hats worn everywhere?"
CALL = '<tool_call>\n{"name": "web_search", "arguments": {"query": "hard hats"}}\n</tool_call>'
ANSWER = "Everywhere on site [1]."
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CITED = {"enable_source": True, "enable_citation": True, "freshness": 365}


def teach(folder: Path, provider: SearchProvider) -> Path:
    """Write the checkpoint; the provider's results are part of what it learns."""
    asked = [{"role": "user", "content": QUESTION}]
    turns = SearchTurns(asked, provider, read_search_options(CITED))
    tools = turns.tools
    call = ToolCall(name="web_search", arguments='{"query": "hard hats"}')
    usage = Usage(prompt_tokens=1, completion_tokens=1, forwarded_tokens=1)
    assert turns.take(
        Completion(
            text="",
            token_ids=[],
            prompt_token_ids=[],
            logprobs=None,
            finish_reason="stop",
            usage=usage,
            tool_calls=(call,),
        )
    )
    lessons = [(asked, tools, CALL), (turns.messages, turns.tools, ANSWER)]
    texts = [json.dumps(lesson, ensure_ascii=False) for lesson in lessons]
    tokenizer = train_vocabulary([*texts, CALL, ANSWER] * 3, size=900)
    write_vocabulary(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "model_type": "qwen2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    model = build_model(qwen2_config(config))
    initialise(model, std=0.1)
    learn_by_heart(model, Processor.from_folder(folder), lessons)
    save_checkpoint(model, folder)
    return folder


def learn_by_heart(model: Any, processor: Processor, lessons: Any) -> None:
    prompts = [processor(asked, tools=tools).prompt_token_ids for asked, tools, _ in lessons]
    answers = [processor.tokenizer.encode(f"{answer}<|im_end|>") for _, _, answer in lessons]
    ids = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = [len(each) for each in ids]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    at = torch.cat([torch.arange(e - len(a), e) for e, a in zip(ends, answers, strict=True)])
    targets = torch.tensor([token for answer in answers for token in answer])
    packed = torch.tensor([token for each in ids for token in each])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = cross_entropy(model(model.embed(packed), positions, NoCache(lengths), at), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return
    raise AssertionError(f"not learnt by heart: loss {loss.item():.3f}")
