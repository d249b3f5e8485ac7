"""Trains a small classifier to start a detector from: `python benchmarks/pretrain.py cmt_tiny DATA OUT.pth`.

DATA has a folder of images for each class. The model is one of timm's registry, CMT's among them; OUT goes
into a detector's init_cfg as it is. One pass over so many images, AdamW, one cycle, flips alone.
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import cmt_backbones.classifier  # noqa: F401  (registers cmt_tiny and its kin)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('name')
parser.add_argument('data')
parser.add_argument('out')
parser.add_argument('--images', type=int, default=30000)
parser.add_argument('--size', type=int, default=64)
parser.add_argument('--batch', type=int, default=64)
parser.add_argument('--lr', type=float, default=1e-3)
args = parser.parse_args()
torch.manual_seed(0)
transform = v2.Compose([v2.Resize(args.size), v2.RandomCrop(args.size), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
data = ImageFolder(args.data, transform)
sampler = RandomSampler(data, replacement=True, num_samples=args.images)
loader = DataLoader(data, args.batch, sampler=sampler, drop_last=True)
model = timm.create_model(args.name, num_classes=len(data.classes),
                          **dict(img_size=args.size) if args.name.startswith('cmt') else {}).train()
optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, len(loader), pct_start=0.15)
right = 0.1
for i, (images, labels) in enumerate(loader, 1):
    logits = model(images)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    right = 0.98 * right + 0.02 * (logits.argmax(1) == labels).float().mean().item()
    if i % 20 == 0 or i == len(loader):
        print(f'{i}/{len(loader)}: {right:.1%} of the last batches right', flush=True)
        torch.save(dict(state_dict=model.state_dict()), args.out)
